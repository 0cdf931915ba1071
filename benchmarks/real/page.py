"""The page and README's table that benchmarks/real_images.py writes from its record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import fmean

from common.page import (
    MEASURES,
    MISSING,
    bullets,
    counted,
    curve,
    difference,
    in_words,
    listed,
    mean,
    points,
    section,
    swap_cell,
    table,
)

from .conclusion import PAPER, conclusion, spreads
from .intervals import against
from .settings import BASELINE, SETTINGS, START

COST = ('multiply-adds', 'parameters')
PRECISION = ('setting', 'epochs', 'seeds', *COST, 'AP', 'AP50', *(f'{m}, difference' for m in MEASURES))
UNITS = ('detection', 'training')
USE = ('setting', 'branch', 'living', 'gate entropy, bits', *(f'swap: {measure}' for measure in MEASURES))
SIZES = ('setting', 'branch', 'unit', "COCO's bins", 'relative size', 'sorts', 'random gates', 'verdicts')
ALONE = ('setting', 'branch', *(f'spread of {measure}' for measure in PAPER), 'AP_S and AP_L of each expert alone')
SWEEP = ('setting', 'k: AP, AP_S, AP_L')

Group = tuple[tuple[str, str], dict[str, dict]]
NAME = 'real_images'  # of the marks in README
SHOWN = {
    BASELINE: 'without experts',
    'kernels, image': 'mixed kernels, 8 copies',
    'shards, image': '2 shards of 4 copies',
}
HEADS = ('photographs', 'detector', 'seeds', 'AP', 'difference', 'change when images swap routes')
NOTHING = 'No photographs have been trained on yet.'


def page(record: dict) -> str:
    """Markdown of everything that is finished."""
    groups = list(groups_of(record))
    said = [f'{data}, {backbone}: {text}' for (data, backbone), rows in groups for text in conclusion(rows)]
    lines = _introduction(record)
    lines += section('What came out', bullets(said) if groups else ['No run is finished.'])
    lines += section('Average precision', _READING)
    for key, rows in groups:
        lines += of_group(key, table(PRECISION, [precision_row(row, rows) for row in rows.values()]))
    lines += ['', 'What the settings are:', '']
    lines += bullets(f'{name}: {setting.about}' for name, setting in SETTINGS.items())
    lines += experts(groups)
    controls = [(key, row) for key, rows in groups for row in rows.values() if row['control']]
    if controls:
        curves = [[*key, row['setting'], curve(row['seeds'])] for key, row in controls]
        told = ['AP in points by epoch, mean over seeds.']
        heads = ['images', 'backbone', 'setting', 'epoch: AP']
        lines += section('Has dense training ended?', told, table(heads, curves))
    lines += _port(record.get('port_check'))
    lines += section('Expected before the runs', bullets(record['expected']))
    return '\n'.join(lines) + '\n'


def of_group(key: tuple[str, str], *tables: list[str]) -> list[str]:
    """Tables of a folder and a backbone below their names."""
    return section(', '.join(key), *tables, level=3)


def groups_of(record: dict) -> Iterator[Group]:
    """Folder and backbone, with its rows by setting, in the order of the record."""
    for key, rows in groupby(record['rows'], lambda row: (row['data'], row['backbone'])):
        yield key, {row['setting']: row for row in rows}


def precision_row(row: dict, rows: dict[str, dict]) -> list[str]:
    """Cost, average precision and the difference from its control of one setting."""
    name, baseline = row['setting'], SETTINGS[row['setting']].baseline
    cells = [f'**{name}**' if row['control'] else name, str(row['epochs']), str(len(row['seeds']))]
    cells += [f'{row[key]:.3f}' for key in ('multiply_adds_over_dense', 'parameters_over_dense')]
    cells += [points([run[measure] for run in row['seeds']]) for measure in ('AP', 'AP50')]
    if name in (baseline, START):
        return [*cells, *[''] * len(MEASURES)]
    control = rows.get(baseline)
    return [*cells, *(difference(control and against(row, control, measure)) for measure in MEASURES)]


def results(record: dict) -> str:
    """Markdown: a row for each detector of ``SHOWN`` that is finished, and what follows of experts."""
    lines, said = [], []
    for (data, _), rows in groups_of(record):
        found = [(words, rows[name]) for name, words in SHOWN.items() if name in rows]
        lines += [_line(data, words, row, rows.get(BASELINE)) for words, row in found]
        said += [f'{data}: {sentence}' for sentence in conclusion(rows)[:2]] if found else []
    return '\n'.join([*table(HEADS, lines), '', in_words('\n'.join(said), SHOWN)]) if lines else NOTHING


def _line(data: str, words: str, row: dict, baseline: dict | None) -> list[str]:
    versus = MISSING
    if baseline is not None and not SETTINGS[row['setting']].control:
        versus = difference(against(row, baseline, 'AP'))
    swap = swap_cell([report['swap'] for report in reports_of(row)], 'AP')
    return [data, words, str(len(row['seeds'])), points([run['AP'] for run in row['seeds']]), versus, swap]


# -- experts ----------------------------------------------------------------------------------------------------------


def experts(groups: Sequence[Group]) -> list[str]:
    """Lines on what the size reports say, of all settings that have one."""
    mixed = [(key, [row for row in rows.values() if reports_of(row)]) for key, rows in groups]
    mixed = [(key, rows) for key, rows in mixed if rows]
    if not mixed:
        return []
    lines = section('Which experts fire for small and for large objects?', _READING_EXPERTS)
    for key, rows in mixed:
        use = table(USE, [line for row in rows for line in use_rows(row)])
        lines += of_group(key, use, table(SIZES, [line for row in rows for line in size_rows(row)]))
    forced = [(key, [row for row in rows if SETTINGS[row['setting']].forced]) for key, rows in mixed]
    forced = [(key, rows) for key, rows in forced if rows]
    if forced:
        lines += section('Single experts, and other numbers of them', _FORCED)
    for key, rows in forced:
        alone = table(ALONE, [line for row in rows for line in forced_rows(row)])
        lines += of_group(key, alone, table(SWEEP, [[row['setting'], sweep_of(row)] for row in rows]))
    return lines


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


# -- texts ------------------------------------------------------------------------------------------------------------


def _port(check: dict | None) -> list[str]:
    if check is None:
        return []
    found = ', '.join(f'{name} {mean([check[name]])}' for name in ('AP', 'AP50', 'AP_S', 'AP_M', 'AP_L'))
    text = [
        'NanoDet-g as a whole, with the pyramid and the head of its file, on the '
        f'{check["images"]} images for validation of {check["data"]}',
        f'with a longer side of {check["size"]} px: {found}. Its authors publish '
        f'{mean([check["published_AP"]])} AP on all 5,000',
        'images of val2017. Run it with `--check-port` and one folder that has the 80 categories of COCO.',
    ]
    return section('Is the backbone what its authors trained?', text)


def _introduction(record: dict) -> list[str]:
    rates = record['learning_rates']
    lines = [
        '# Photographs: a pretrained detector, fine-tuned with and without experts',
        '',
        f'`{record["command"]}` with `--data-root` and `--weights`, {record["machine"]}, {record["date"]}; '
        f'{listed(record["versions"])}.',
        '',
        'The RetinaNet of `configs/fine_tune/` with a pretrained backbone is trained on photographs with a longer side',
        f'of {record["size"]} px at a peak learning rate of {rates["start"]:g}; every other setting goes on from it at '
        f'{rates["more"]:g},',
        'same seed, same images. So every difference is one between two continuations of the same detector. Images are',
        'in COCO layout, split as they came:',
        '',
    ]
    for name, about in record.get('data', {}).items():
        classes = ', '.join(about['classes'][:8]) + (', ...' if len(about['classes']) > 8 else '')
        source = f' Source, as its annotation file says: {about["source"]}.' if about['source'] else ''
        lines.append(
            f'- {name}: {about["images"][0]} images for training, {about["images"][1]} for validation, '
            f'{len(about["classes"])} classes ({classes}).{source}'
        )
    for name, about in record.get('weights', {}).items():
        lines.append(f'- Backbone {name}: {about["source"]}, file `{about["file"]}`.')
    return lines


_READING = [
    'Multiply-adds and parameters: of the whole detector, over those of `dense`. Bold settings are controls without',
    'experts. Differences are in points, seed by seed, from "dense continued", or from "head continued" where backbone',
    'and pyramid are frozen. The 95 % intervals hold for other images and other seeds: images for validation are',
    'resampled 200 times, alike for all settings, and seeds with them; of a single seed, for other images alone.',
]
_READING_EXPERTS = [
    'The swap test gives every image the route of another image with a similar number of objects; what is lost is what',
    "the gate's choice is worth. Changes in points, mean over seeds; in brackets the seeds whose interval lies below",
    'zero.',
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
