"""What was expected of benchmarks/real_images.py, written down before its runs."""

EXPECTED = [
    'Some hundred photographs do not bind the capacity of a head of 64 channels for three to seven classes: no mixture '
    'has 1 AP more than "dense continued", and most lie within half a point of it, on every data set.',
    'The published recipe (soft, hard) gains what going on gains, or less, as backbone and pyramid are frozen; its '
    'control is "head continued". Soft and hard cannot be told apart in AP.',
    'Experts of shards, one decision per image: in the face masks, where images explain 78 % of the variance of log '
    'size, they sort objects by size without regard to the level, and are scale-specialised in most runs; in the blood '
    'cells, where images explain 3 %, in none; in the aquarium (53 %) in some.',
    'Beyond the level, by relative size, few layers sort more than random gates do: in the face masks at most half of '
    'the runs, in the blood cells none.',
    'In the blood cells size goes with class. A gate that sees an image sees the same few classes in each, so its '
    'experts cannot differ by size or class; the swap costs less than half a point there.',
    'The swap costs less than one point of AP in every setting whose whole detector trains, more in soft than in hard.',
    "Forced experts of soft and hard differ in AP_S and AP_L by less than the paper's 2.3 and 1.8 points, as copies of "
    'one dense head that train for a few epochs stay alike; the more experts a row runs at test time, the better, with '
    'less than half a point between two and four.',
    'Mixed kernels of 8 copies, the best of docs/results/experts_that_pay.md, stay within half a point of "dense '
    'continued" too; they lose more under the swap than shards, and less than a point.',
]
