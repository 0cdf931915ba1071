"""The page and README's table that benchmarks/experts_that_pay.py writes from its record."""

from __future__ import annotations

from statistics import fmean

from common.intervals import against
from common.page import (
    MEASURES,
    MISSING,
    bullets,
    counted,
    curve,
    difference,
    in_words,
    made,
    points,
    section,
    swap_cell,
    table,
)

from moe_det.analysis.slots import expert_name

from .conclusion import conclusion, layers_of, swaps_of
from .settings import AGAIN, BASELINE, BATCH, FORCED, TABLE, TWICE, Table

PRECISION = (
    *('row', 'seeds', 'multiply-adds', 'parameters', 'time, inference', 'time, training', 'AP'),
    *(f'{measure} minus control' for measure in MEASURES),
)
NAME = 'experts_that_pay'  # of the marks in README
SHOWN = {
    BASELINE: 'without experts',
    'kernels, image, 8 copies': 'mixed kernels, 8 copies (`retinanet_moe_from_dense.py`)',
    'kernels, image': 'mixed kernels, 4 copies',
    'shards, image': '2 shards of 4 copies',
    TWICE: 'without experts, a head of twice the width',
}
SWAPPED = ('row', *(f'swap: {measure}' for measure in MEASURES), 'living experts', 'gate entropy, bits', 'verdicts')


def precision_row(row: dict, rows: dict[str, dict], of: Table = TABLE) -> list[str]:
    """Cost, average precision, and the difference from the control, of one row."""
    name = row['name']
    cells = [f'**{name}**' if row['control'] else name, str(len(row['seeds']))]
    cells += [f'{row[key]:.3f}' for key in ('multiply_adds_over_dense', 'parameters_over_dense')]
    cells += [_time(row, kind) for kind in ('inference', 'training')]
    cells.append(points([run['AP'] for run in row['seeds']]))
    baseline = rows.get(of[name].against)
    if baseline is None:
        return [*cells, *[''] * len(MEASURES)]
    return [*cells, *(difference(against(row, baseline, measure)) for measure in MEASURES)]


def _time(row: dict, kind: str) -> str:
    times = row.get('time_over_dense')
    return f'{times[kind]["median"]:.2f}' if times else MISSING


def swap_row(row: dict) -> list[str]:
    """The swap test of one row, and how its experts are used."""
    cells = [row['name'], *(swap_cell(swaps_of(row), measure) for measure in MEASURES)]
    layers = [layer for _, layer in layers_of(row)]
    if not layers:
        return [*cells, MISSING, MISSING, MISSING]
    cells.append(f'{min(layer["living"] for layer in layers)} to {max(layer["living"] for layer in layers)}')
    cells.append(f'{fmean(layer["gate_entropy_bits"] for layer in layers):.2f}')
    return [*cells, counted([layer['verdict'] for layer in layers])]


def forced_rows(row: dict | None) -> list[list[str]]:
    """Average precisions with each copy forced, mean and deviation over seeds."""
    found: dict[tuple[str, str], list[dict]] = {}
    for name, layer in layers_of(row) if row else ():
        for one in layer.get('forced') or ():
            copy = expert_name(one['expert'], len(layer['forced']), layer['shards'])
            found.setdefault((name, copy), []).append(one)
    return [
        [name, copy, str(len(runs)), *(points([one[measure] for one in runs]) for measure in MEASURES)]
        for (name, copy), runs in found.items()
    ]


def earlier_lines(record: dict) -> list[str]:
    """What other schedules had given: the record keeps their figures, nothing runs them again."""
    lines = []
    for kept in record.get('earlier') or ():
        more, rows = kept['schedule'], {row['name']: row for row in kept['rows']}
        cells = []
        for row in kept['rows']:
            versus = '' if row['name'] == BASELINE else difference(against(row, rows.get(BASELINE), 'AP'))
            cells.append([row['name'], len(row['seeds']), points(run['AP'] for run in row['seeds']), versus])
        told = ['An earlier schedule from the same detectors; its runs are not repeated.']
        heads = ['row', 'seeds', 'AP', 'AP minus control']
        lines += section(f'{more["epochs"]} epochs more at {more["learning_rate"]:g}', told, table(heads, cells))
    return lines


def again_lines(record: dict, rows: dict[str, dict]) -> list[list[str]]:
    """What runs that were repeated gave: the record keeps the first of each in its row, the second apart."""
    cells = []
    for run in record.get('repeated') or ():
        first = {one['seed']: one for one in rows[run['name']]['seeds']}[run['seed']]
        cells.append([run['name'], run['seed'], *(f'{100 * one["AP"]:.1f}' for one in (first, run)), run['why']])
    told = ['Runs that were repeated later, on another machine of the kind; the tables have the first.']
    return [told, table(['row', 'seed', 'AP', 'AP again', 'why not equal'], cells)] if cells else []


def page(record: dict) -> str:
    """Markdown of everything that is finished."""
    rows = {row['name']: row for row in record['rows']}
    controls, mixed = ([row for row in rows.values() if row['control'] is control] for control in (True, False))
    precision = table(PRECISION, [precision_row(row, rows) for row in record['rows']])
    lines = [*_introduction(record), *section('What came out', bullets(conclusion(rows)))]
    lines += section('Average precision', _READING, precision, *rows_in_words(TABLE), *again_lines(record, rows))
    swapped = table(SWAPPED, [swap_row(row) for row in mixed])
    lines += section('Do the experts differ in what they can do?', _SWAP, swapped)
    forced = forced_rows(rows.get(FORCED))
    if forced:
        lines += section('What each copy can do', _FORCED, table(['layer', 'copy', 'seeds', *MEASURES], forced))
    curves = table(['row', 'epoch: AP'], [[row['name'], curve(row['seeds'])] for row in controls])
    lines += section('Has dense training ended?', ['AP by epoch, mean over seeds.'], curves)
    lines += [*earlier_lines(record), *section('Expected before the runs', bullets(record['expected']))]
    return '\n'.join([*lines, *not_run(rows, TABLE)]) + '\n'


def rows_in_words(of: Table) -> tuple[list[str], list[str]]:
    """What the rows are, two blocks."""
    return ['What the rows are:'], bullets(f'{name}: {of[name].about}' for name in of.names)


def results(record: dict) -> str:
    """Markdown: a row for each detector of ``SHOWN`` that is finished, whether experts pay and whether they differ."""
    rows = {row['name']: row for row in record['rows']}
    baseline, lines = rows.get(BASELINE), []
    for name, words in SHOWN.items():
        if name not in rows:
            continue
        row = rows[name]
        versus = MISSING if name == BASELINE or baseline is None else difference(against(row, baseline, 'AP'))
        cells = [words, f'{row["multiply_adds_over_dense"]:.3f}', len(row['seeds'])]
        cells.append(points(run['AP'] for run in row['seeds']))
        lines.append([*cells, versus, swap_cell(swaps_of(row), 'AP')])
    heads = ['detector', 'multiply-adds', 'seeds', 'AP', 'difference', 'change when images swap routes']
    return '\n'.join([*table(heads, lines), '', in_words('\n'.join(conclusion(rows)[1:3]), SHOWN)])


def not_run(rows: dict[str, dict], of: Table) -> list[str]:
    """Which rows are missing."""
    missing = [name for name in of.names if name not in rows]
    return ['', f'Not run yet: {"; ".join(missing)}.'] if missing else []


def _introduction(record: dict) -> list[str]:
    start, more = record['schedule']['start'], record['schedule']['more']
    data = record['data']
    return [
        '# Experts that pay',
        '',
        made(record),
        '',
        f'A RetinaNet of `configs/shapes/kinds_dense.py` is trained for {start["epochs"]} epochs; each row below goes',
        f'on from it for {more["epochs"]} epochs at a peak learning rate of {more["learning_rate"]:g}, whole detector,',
        'same seed, same images, with or without experts. So every difference is between two continuations of the same',
        f'detector. Images: {data["train"]} for training, {data["val"]} for validation, {data["size"]} px, shapes of',
        f'{data["scene-kinds"]} kinds of scenes. An image shows six classes of its kind on a background with a tint',
        'of the kind, and between the hues of two classes of a kind lie those of the other kinds. The head has too few',
        'channels for all classes, so that capacity may bind, and images come in kinds a gate can see: both are so',
        'on purpose. Where images are of one kind, or a head is wide enough, none of this needs to hold.',
    ]


_READING = [
    'Multiply-adds, parameters and time: of the whole detector, over those of `dense`. Times are medians of ratios: an',
    f'image, and a training step of {BATCH}, in turn with dense, by `--times`, routed as by a checkpoint of the row:',
    'its last or, for rows trained on another machine, one of the first epoch. These detectors take milliseconds, so',
    'what experts cost besides multiply-adds shows; docs/performance.md has the times of a detector for photographs.',
    f'Bold rows are controls without experts. Differences are from "{BASELINE}", in points, seed by seed, with',
    f'Student\'s 95 % interval of the pairs; "{TWICE}" starts from a detector of its own, and',
    f'what was trained on once more is compared with "{AGAIN}".',
]
_SWAP = [
    'The swap test gives every image the route of another image with a similar number of objects: what is lost is what',
    "the gate's choice is worth (docs/size_specialization.md). Changes in points, mean over seeds, all layers at once;",
    'in brackets the seeds whose interval lies below zero. Verdicts are of layers (class and box branch), in brackets',
    'how many.',
]
_FORCED = [
    f'AP of "{FORCED}" while all images run one copy of one shard of one branch, and everything else is routed as the',
    'gate wants: what is missing is what that copy cannot do. A copy has no meaning over seeds, so wide deviations are',
    'to be expected.',
]
