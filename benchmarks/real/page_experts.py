"""The part on experts of the page that benchmarks/real_images.py writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from common.page import MEASURES, MISSING, counted, mean, swap_cell, table

from .conclusion import PAPER, spreads
from .settings import SETTINGS

UNITS = ('detection', 'training')
USE = ('setting', 'branch', 'living', 'gate entropy, bits', *(f'swap: {measure}' for measure in MEASURES))
SIZES = ('setting', 'branch', 'unit', "COCO's bins", 'relative size', 'sorts', 'random gates', 'verdicts')
ALONE = ('setting', 'branch', *(f'spread of {measure}' for measure in PAPER), 'AP_S and AP_L of each expert alone')
SWEEP = ('setting', 'k: AP, AP_S, AP_L')

Group = tuple[tuple[str, str], dict[str, dict]]


def experts(groups: Sequence[Group]) -> list[str]:
    """Lines on what the size reports say, of all settings that have one."""
    mixed = [(key, [row for row in rows.values() if reports_of(row)]) for key, rows in groups]
    mixed = [(key, rows) for key, rows in mixed if rows]
    if not mixed:
        return []
    lines = ['', '## Which experts fire for small and for large objects?', '', *_READING]
    for key, rows in mixed:
        lines += ['', title(key), '', *table(USE, [line for row in rows for line in use_rows(row)])]
        lines += ['', *table(SIZES, [line for row in rows for line in size_rows(row)])]
    forced = [(key, [row for row in rows if SETTINGS[row['setting']].forced]) for key, rows in mixed]
    forced = [(key, rows) for key, rows in forced if rows]
    if not forced:
        return lines
    lines += ['', '## Single experts, and other numbers of them', '', *_FORCED]
    for key, rows in forced:
        lines += ['', title(key), '', *table(ALONE, [line for row in rows for line in forced_rows(row)])]
        lines += ['', *table(SWEEP, [[row['setting'], sweep_of(row)] for row in rows])]
    return lines


def title(key: tuple[str, str]) -> str:
    """Heading of a folder and a backbone."""
    return f'### {key[0]}, {key[1]}'


def reports_of(row: dict) -> list[dict]:
    """What the size report of each seed says."""
    return [run['experts'] for run in row['seeds'] if run.get('experts')]


def layers_of(row: dict) -> dict[str, list[dict]]:
    """Branch -> what the report of each seed says of it."""
    found: dict[str, list[dict]] = {}
    for report in reports_of(row):
        for name, layer in report['layers'].items():
            found.setdefault(name.rpartition('.')[2], []).append(layer)
    return found


def use_rows(row: dict) -> Iterator[list[str]]:
    """Use of the experts of each branch, and the swap test; then the swap of both branches at once."""
    for branch, layers in layers_of(row).items():
        living = [layer['living'] for layer in layers]
        entropy = fmean(layer['gate_entropy_bits'] for layer in layers)
        cells = [f'{min(living)} to {max(living)} of {layers[0]["num_experts"]}', f'{entropy:.2f}']
        yield [row['setting'], branch, *cells, *(swap_cell([layer['swap'] for layer in layers], m) for m in MEASURES)]
    whole = [report['swap'] for report in reports_of(row)]
    yield [row['setting'], 'both', '', '', *(swap_cell(whole, m) for m in MEASURES)]


def size_rows(row: dict) -> Iterator[list[str]]:
    """Information about size in both units; with the first one what concerns the layer as a whole."""
    for branch, layers in layers_of(row).items():
        gates = ', '.join(f'{100 * layer["random_gates"]:.0f}' for layer in layers if layer['random_gates'] is not None)
        whole = [gates or MISSING, counted([layer['verdict'] for layer in layers])]
        for unit in UNITS:
            found = [layer['units'][unit] for layer in layers if unit in layer['units']]
            if found:
                cells = [_information([one[kind] for one in found]) for kind in ('coco_bins', 'relative_size')]
                cells.append(f'{sum(one["sorts"] is True for one in found)} of {len(found)}')
                yield [row['setting'], branch, unit, *cells, *whole]
                whole = ['', '']


def _information(found: Sequence[dict | None]) -> str:
    """Mean bits and mean V."""
    known = [one for one in found if one]
    if not known:
        return MISSING
    return f'{fmean(one["mi_bits"] for one in known):.3f} (V {fmean(one["cramers_v"] for one in known):.2f})'


def forced_rows(row: dict) -> Iterator[list[str]]:
    """Spread over forced experts seed by seed; average precision by size of each alone, mean over seeds."""
    for branch, layers in layers_of(row).items():
        cells = [', '.join(f'{spread:.1f}' for spread in spreads(layers, m)) or MISSING for m in PAPER]
        each = []
        for expert in range(layers[0]['num_experts']):
            alone = [one for layer in layers for one in layer['forced'] if one['expert'] == expert]
            each.append(' and '.join(mean([one[m] for one in alone]) for m in PAPER))
        yield [row['setting'], branch, *cells, '; '.join(each)]


def sweep_of(row: dict) -> str:
    """AP, AP_S and AP_L by the number of experts that run, mean over seeds."""
    by_k: dict[int, list[dict]] = {}
    for report in reports_of(row):
        for one in report['top_k']:
            by_k.setdefault(one['k'], []).append(one)
    cells = [f'{k}: {", ".join(mean([one[m] for one in found]) for m in ("AP", *PAPER))}' for k, found in by_k.items()]
    return '; '.join(cells) or MISSING


_READING = [
    'The swap test gives every image the route of another image with like many objects; what is lost is what the',
    "gate's choice is worth. Changes in points, mean over seeds; in brackets the seeds whose interval lies below zero.",
    '',
    "Two readings of size given the pyramid level: COCO's bins, and relative size, the thirds by area among the",
    "objects of a level. Bits of information of the expert about it and Cramér's V, mean over seeds, once for the",
    'objects that detections match and once for the anchors that train on them. *Sorts*: seeds whose p by relative',
    'size is at most 0.01 with V at least 0.1. Random gates: how many of them, in %, sort less than the trained one,',
    'seed by seed. Verdicts: of the seeds. `docs/size_specialization.md` explains all of it.',
]
_FORCED = [
    'Every row runs one expert alone: the spread, largest minus smallest, of AP_S and AP_L in points, seed by seed;',
    f'arXiv 2204.10598 has {PAPER["AP_S"]} and {PAPER["AP_L"]} (box experts, part of COCO). Then every row runs',
    'k experts, from 1 to all, of which one costs what dense costs. Means over seeds.',
]
