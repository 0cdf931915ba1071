"""What was expected of benchmarks/experts_that_pay.py, written down before its runs."""

# after trials with one seed: at 16 channels 78.6 for shards per image and 78.2 for the control, six epochs each; at 8
# channels 67.7 for shards, whose AP falls to 25.7 when routes are swapped
EXPECTED = [
    'Capacity binds: a head of twice the width gains 4 to 8 points.',
    'Shards with one decision per image gain 2 to 6 points, and lose more than 10 under the swap: their copies become '
    'experts for kinds of scenes.',
    'With one decision per level they gain at most half a point less than with one per image, as each level sees the '
    'kind as well.',
    'Copies that share a weight gain less than independent ones: here they must differ.',
    'Copies of the whole branch, top-1 and straight through, gain more than shards, since more of the head differs.',
    'The same with the gate probability as weight starts lower and stays lower.',
    'More copies than kinds (8) gain nothing over 4; two copies gain half.',
]
