"""The page that benchmarks/specialization_on_shapes.py writes from its record."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from common.intervals import welch
from common.page import MEASURES, MISSING, bullets, difference, listed, points, section, swap_cell, table

from .conclusion import LAYERS, answers, conclusion, label, layers_of, relative_bits


def by_seed(values: Sequence[float | None], digits: int) -> str:
    """Values in the order of the seeds."""
    return ', '.join(MISSING if value is None else f'{value:.{digits}f}' for value in values)


def precision_row(name: str, setting: dict, dense: dict | None) -> list[str]:
    """One setting: cost, average precision, and how far it is from dense."""
    runs = setting['runs']
    cost = runs[0].get('multiply_adds_over_dense') or {}
    cells = [label(name), str(len(runs))]
    cells += [f'{cost[part]:.3f}' if part in cost else MISSING for part in ('head', 'model')]
    cells += [points([run['ap'][measure] for run in runs]) for measure in MEASURES]
    if name == 'dense' or dense is None:
        return [*cells, '']
    apart = welch(*([100 * run['ap']['AP'] for run in side['runs']] for side in (setting, dense)))
    return [*cells, difference(apart)]


def bits(values: Sequence[float | None], ceilings: Sequence[float | None]) -> str:
    """Bits by seed, and the most that they could have been."""
    known = [ceiling for ceiling in ceilings if ceiling is not None]
    return by_seed(values, 3) + (f' of {fmean(known):.2f}' if known else '')


def branch_row(name: str, setting: dict, layer: str) -> list[str]:
    """One setting: the three questions for one branch."""
    found = layers_of(setting, layer)
    relative = [(one['relative_size'] or {}).get('ceiling_bits') for one in found]
    gates = [(one['random_gates'] or {}).get('quantile') for one in found]
    return [
        label(name),
        bits([one['mi_given_level_bits'] for one in found], [one['ceiling_bits'] for one in found]),
        bits([relative_bits(one) for one in found], relative),
        f'{answers(found).sorts} of {len(found)}',
        by_seed([None if place is None else 100 * place for place in gates], 0),
        *(swap_cell([one['swap'] for one in found], measure) for measure in MEASURES),
        by_seed([one['mi_bits'] for one in found], 3),
    ]


def verdict_row(name: str, setting: dict) -> list[str]:
    """One setting: verdicts by seed and over seeds."""
    cells = [label(name)]
    for layer in LAYERS:
        common = ((setting['seeds'] or {}).get('layers') or {}).get(layer) or {}
        cells += ['; '.join(one['verdict'] for one in layers_of(setting, layer)), common.get('sentence') or MISSING]
    return cells


def page(record: dict, order: list[str]) -> str:
    """Markdown of all finished settings, in the order of the grid."""
    finished = {name: record['settings'][name] for name in order if name in record['settings']}
    mixed = {name: setting for name, setting in finished.items() if setting['runs'][0]['layers']}
    missing = [name for name in order if name not in finished]
    dense = finished.get('dense')
    lines = [*_introduction(record, finished), *_expected(record)]
    heads = ['setting', 'seeds', 'cost: head', 'cost: model', *MEASURES, 'AP minus dense']
    rows = table(heads, [precision_row(name, setting, dense) for name, setting in finished.items()])
    lines += section('Average precision and cost', _COST, rows)
    lines += section('The three questions', _QUESTIONS)
    heads = ['setting', 'COCO bins, bits', 'relative size, bits', 'sorts', 'random gates, %']
    heads += [f'swap: {measure}' for measure in MEASURES] + ['I(E;S), bits']
    for layer, branch in LAYERS.items():
        rows = table(heads, [branch_row(name, setting, layer) for name, setting in mixed.items()])
        lines += section(branch.capitalize(), rows, level=3)
    heads = ['setting', *(f'{branch}: {what}' for branch in LAYERS.values() for what in ('by seed', 'over seeds'))]
    lines += section('Verdicts', table(heads, [verdict_row(name, setting) for name, setting in mixed.items()]))
    lines += section('What came out', bullets(conclusion(finished)))
    if missing:
        lines += ['', f'Not run yet: {", ".join(f"`{name}`" for name in missing)}.']
    return '\n'.join(lines) + '\n'


def _introduction(record: dict, finished: dict[str, dict]) -> list[str]:
    versions = listed(record.get('versions') or {})
    epochs = ', '.join(sorted({str(setting['epochs']) for setting in finished.values()}))
    return [
        '# Do experts specialise in object size? Results on the synthetic shapes',
        '',
        'A narrow RetinaNet (`configs/shapes/`) with four experts in the class and in the box branch, two per',
        'decision, trained from scratch on 800 synthetic images and measured on 200 others with',
        '`tools/analysis_tools/size_specialization.py`. Names are constraint-unit-balance: `soft-level-all` is the',
        'setting of arXiv 2204.10598. `-matched` has experts so wide that two cost what the dense branch costs.',
        '`similarity-*` have the sample similarity loss of arXiv 2302.14703 on pooled features, `boxes-*` on the sizes',
        'of the boxes in the image or patch: **ground truth of the training images guides these towards sizes**, all',
        'others are not guided. AP in points, mean ± standard deviation over seeds. How to read the measures:',
        '[size_specialization.md](../size_specialization.md).',
        '',
        f'Measured on {record.get("date", "?")} on {record.get("machine", "?")}; {versions}.',
        f'Command: `{record.get("command", "?")}`. Epochs: {epochs}.',
    ]


def _expected(record: dict) -> list[str]:
    if not record.get('expected'):
        return []
    told = ['Written down before these runs were measured, after a trial with single checkpoints:']
    return section('What was expected', told, bullets(record['expected']))


_COST = [
    'Cost: multiply-adds for one image over those of the detector without experts, in the head and in the whole',
    'model. Only a row at equal cost is a fair comparison with `dense`. The last column is the difference from',
    "`dense` in points, with Welch's 95 % interval over seeds (two seeds at least).",
]
_QUESTIONS = [
    '1. Does the gate sort by size beyond the level? *COCO bins*: I(E;S | level), *relative size*: I(E; third of log',
    '   area within the level | level), each by seed and with the most that it could be (*of*); *sorts*: seeds whose',
    '   relative size passes in the detection unit and in the training unit.',
    '2. Is that more than a random gate on the same features does? *Random gates*: percentage of random gates,',
    '   matched in use, that tell less, by seed; more than 95 is asked for.',
    '3. Does it matter for the detector? *Swap*: every decision is replaced by that of another image at the same',
    '   level; change in points, mean over seeds, and in brackets in how many seeds the 95 % interval lies below zero.',
    '',
    'I(E;S) is not conditioned on the level and so contains what the level tells about size: it answers none of the',
    'three and is not comparable with the bits given the level.',
]
