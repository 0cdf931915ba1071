"""The page that benchmarks/neighbours.py writes from its record."""

from __future__ import annotations

from statistics import fmean

from common.intervals import against
from common.page import MISSING, bullets, counted, difference, made, points, section, table
from pay.conclusion import MOST_COST, layers_of
from pay.page import PRECISION, SWAPPED, not_run, precision_row, rows_in_words, swap_row
from pay.settings import BASELINE, BATCH

from moe_det.attacks.plan import NOISE, PGD, PGD_LONG

from .conclusion import alone, conclusion, looks, under, under_more_steps, values
from .settings import MUTUAL, TABLE, TEACHER
from .withstand import ATTACKS, CLEAN, CORRUPTED, EPS, SEVERITY, UNDER

WITHSTAND = (
    *('row', 'seeds', 'images', 'AP'),
    *(f'{kind}: {what}' for kind in UNDER for what in ('AP', 'minus control', 'AP lost')),
    *(f'decisions that stay, {kind}' for kind in UNDER),
    'signs of masking',
)

CLOSER = (
    *('row', 'seeds', 'images', 'random signs: AP', f'{PGD}: AP', f'{PGD_LONG}: AP', f'{PGD_LONG}: minus control'),
    *("the control's images: AP", 'the control, its own: AP', "the control, the row's: AP"),
    *(f'the control, {PGD_LONG}: AP', 'signs of masking'),
)


def page(record: dict) -> str:
    """Markdown of everything that is finished."""
    rows = {row['name']: row for row in record['rows']}
    precision = [table(PRECISION, [_precision(row, rows) for row in record['rows']])] if rows else []
    lines = [*_introduction(record), *section('What came out', bullets(conclusion(rows)))]
    lines += section('Average precision and cost', _READING, *precision, *rows_in_words(TABLE))
    mixed = [row for row in record['rows'] if not row['control']]
    if mixed:
        swapped = table((*SWAPPED, 'size given the level, bits'), [[*swap_row(row), _beyond(row)] for row in mixed])
        lines += section('Do the experts differ in what they can do?', _SWAP, swapped)
    single = [rows[name] for name in (*MUTUAL.values(), TEACHER) if name in rows and alone(rows[name])['AP']]
    if single:
        heads = ['row', 'seeds', 'AP', 'AP of an expert alone', 'the worst', 'the best', 'swap: AP']
        learnt = table(heads, [_alone(row) for row in single])
        lines += section('Experts that learn from each other', _ALONE, learnt)
    attacked = [row for row in record['rows'] if any(run.get('withstands') for run in row['seeds'])]
    if attacked:
        withstood = table(WITHSTAND, [_withstands(row, rows) for row in attacked])
        lines += section('What the rows withstand', _WITHSTAND, withstood)
    closer = [row for row in record['rows'] if looks(row)]
    if closer:
        lines += section('A closer look', _CLOSER, table(CLOSER, [_looked_at(row) for row in closer]))
    lines += section('Expected before the runs', bullets(record['expected']))
    return '\n'.join([*lines, *not_run(rows, TABLE)]) + '\n'


def _precision(row: dict, rows: dict[str, dict]) -> list[str]:
    cells = precision_row(row, rows, TABLE)
    if row['multiply_adds_over_dense'] > MOST_COST:
        cells[PRECISION.index('multiply-adds')] += ' (more)'
    return cells


def _beyond(row: dict) -> str:
    """Mutual information of expert and object size given the level, above that of permuted rows, mean over layers."""
    found = [layer.get('mi_given_level_bits') for _, layer in layers_of(row)]
    found = [value for value in found if value is not None]
    return f'{fmean(found):.3f}' if found else MISSING


def _alone(row: dict) -> list[str]:
    found = alone(row)['AP']
    swap = swap_row(row)[SWAPPED.index('swap: AP')]
    cells = [row['name'], str(len(row['seeds'])), points(run['AP'] for run in row['seeds']), points(found)]
    return [*cells, f'{100 * min(found):.1f}', f'{100 * max(found):.1f}', swap]


def _withstands(row: dict, rows: dict[str, dict]) -> list[str]:
    runs = [run['withstands'] for run in row['seeds'] if run.get('withstands')]
    images = ', '.join(map(str, dict.fromkeys(one['images'] for one in runs)))
    cells = [f'**{row["name"]}**' if row['control'] else row['name'], str(len(runs)), images]
    cells.append(points(values(row, CLEAN, 'AP')))
    for kind in UNDER:
        control = rows.get(TABLE[row['name']].against)
        versus = difference(against(under(row, kind), under(control, kind), 'AP')) if control else ''
        cells += [points(values(row, kind, 'AP')), versus, _percent(values(row, kind, 'drop'))]
    cells += [_percent(values(row, kind, 'agreement')) for kind in UNDER]
    return [*cells, _signs(runs)]


def _looked_at(row: dict) -> list[str]:
    found = looks(row)

    def cell(attack: str, what: str) -> str:
        return points(one[attack][what] for one in found)

    images = ', '.join(map(str, dict.fromkeys(one['images'] for one in found)))
    cells = [row['name'], str(len(found)), images, *(cell(attack, 'own') for attack in (NOISE, PGD, PGD_LONG))]
    cells.append(difference(under_more_steps(row)))
    cells += [cell(PGD, what) for what in ('from_control', 'control', 'on_control')]
    return [*cells, cell(PGD_LONG, 'control'), _signs(found)]


def _signs(found: list[dict]) -> str:
    """Signs of gradient masking, without their numbers, and in how many runs."""
    return counted([sign.partition(' (')[0] for one in found for sign in one['masking']]) or 'none'


def _percent(shares: list[float]) -> str:
    return f'{100 * fmean(shares):.0f} %' if shares else MISSING


def _introduction(record: dict) -> list[str]:
    start, more, data = record['schedule']['start'], record['schedule']['more'], record['data']
    return [
        '# Neighbours on the shapes',
        '',
        made(record) if record['rows'] else f'`{record["command"]}`.',
        '',
        'The mechanisms of [neighbours.md](../neighbours.md) beside the detector without experts, in one detector with',
        'one measure. Detector, images, start and schedule are those of [experts that pay](experts_that_pay.md): a',
        f'RetinaNet of {start["epochs"]} epochs on {data["train"]} images of {data["scene-kinds"]} kinds of scenes,',
        f'from which each row goes on for {more["epochs"]} epochs at a peak learning rate of',
        f'{more["learning_rate"]:g}, same seed, same images. What does not fit the dense weights starts as it can, and',
        'its row says so.',
    ]


_READING = [
    'Multiply-adds, parameters and time: of the whole detector, over those of `dense`; "(more)" marks rows that cost',
    f'more than {MOST_COST} of it and are not at equal cost. Times are medians of ratios, an image and a training step',
    f'of {BATCH} (forward, backward and what hooks compute), in turn with dense, by `--times`. Rows in bold have no',
    f'experts. Differences are from "{BASELINE}", in points, seed by seed, with Student\'s 95 % interval of the pairs.',
]
_SWAP = [
    'The swap test gives every image (patch, location) the route of another one with a similar number of objects: what',
    "is lost is what the gate's choice is worth (docs/size_specialization.md). Changes in points, mean over seeds, all",
    'layers at once; in brackets the seeds whose interval lies below zero. Verdicts are of layers, in brackets how',
    'many; the last column is what expert and object size share beyond what the pyramid level tells.',
]
_ALONE = [
    'AP of the mixture beside that of each expert which all images are forced to run in one branch while the other is',
    'routed as the gate wants, over branches, experts and seeds. If experts improve by becoming equal, those alone',
    'come nearer to the mixture and the swap loses less.',
]
_WITHSTAND = [
    f'`moe-det attack` on the first validation images: {" and ".join(ATTACKS)} of {EPS}/255 on the whole detection',
    f'loss, gradients through gates and experts, and the mean of 15 common {CORRUPTED} of severity {SEVERITY}.',
    'Differences are from the control, in points; "AP lost" is the share of the AP on the clean images. Decisions stay',
    'if a row keeps its set of experts (the most probable one where all are mixed).',
]
_CLOSER = [
    f'Some rows once more, with {PGD_LONG}, and beside their control: `moe-det attack ... --also` shows each of the',
    f'two the images that {PGD} made for the other. Images made for another detector need no gradient of the one that',
    'is shown them: where they do more than its own, its gradients hide something. Random signs of the same size are',
    'what the gradient has to do better than.',
]
