"""The page and README's table that benchmarks/real_images.py writes from its record."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from common.page import MEASURES, MISSING, curve, difference, listed, mean, points, swap_cell, table

from .conclusion import conclusion
from .intervals import against
from .page_experts import Group, experts, reports_of, title
from .settings import BASELINE, SETTINGS, START

COST = ('multiply-adds', 'parameters')
PRECISION = ('setting', 'epochs', 'seeds', *COST, 'AP', 'AP50', *(f'{m}, difference' for m in MEASURES))
NAME = 'real_images'  # of the marks in README
SHOWN = {
    BASELINE: 'without experts',
    'kernels, image': 'mixed kernels, 8 copies',
    'shards, image': 'shards, 2 of 4 copies',
}
HEADS = ('photographs', 'detector', 'seeds', 'AP', 'AP more than without experts', 'AP when images swap routes')
NOTHING = 'No photographs have been trained on yet.'


def page(record: dict) -> str:
    """Markdown of everything that is finished."""
    groups = list(groups_of(record))
    lines = [*_introduction(record), '', '## What came out', '']
    if not groups:
        lines.append('No run is finished.')
    for (data, backbone), rows in groups:
        lines += [f'- {data}, {backbone}: {sentence}' for sentence in conclusion(rows)]
    lines += ['', '## Average precision', '', *_READING]
    for key, rows in groups:
        lines += ['', title(key), '', *table(PRECISION, [precision_row(row, rows) for row in rows.values()])]
    lines += ['', 'What the settings are:', '']
    lines += [f'- {name}: {setting.about}' for name, setting in SETTINGS.items()]
    lines += experts(groups)
    controls = [(key, row) for key, rows in groups for row in rows.values() if row['control']]
    curves = [[*key, row['setting'], curve(row['seeds'])] for key, row in controls]
    if curves:
        lines += ['', '## Has dense training ended?', '', 'AP in points by epoch, mean over seeds.', '']
        lines += table(['images', 'backbone', 'setting', 'epoch: AP'], curves)
    lines += _port(record.get('port_check'))
    lines += ['', '## Expected before the runs', '', *(f'- {sentence}' for sentence in record['expected'])]
    return '\n'.join(lines) + '\n'


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
    return '\n'.join([*table(HEADS, lines), '', *said]) if lines else NOTHING


def _line(data: str, words: str, row: dict, baseline: dict | None) -> list[str]:
    versus = MISSING
    if baseline is not None and not SETTINGS[row['setting']].control:
        versus = difference(against(row, baseline, 'AP'))
    swap = swap_cell([report['swap'] for report in reports_of(row)], 'AP')
    return [data, words, str(len(row['seeds'])), points([run['AP'] for run in row['seeds']]), versus, swap]


def _port(check: dict | None) -> list[str]:
    if check is None:
        return []
    found = ', '.join(f'{name} {mean([check[name]])}' for name in ('AP', 'AP50', 'AP_S', 'AP_M', 'AP_L'))
    return [
        '',
        '## Is the backbone what its authors trained?',
        '',
        'NanoDet-g as a whole, with the pyramid and the head of its file, on the '
        f'{check["images"]} images for validation of {check["data"]}',
        f'with a longer side of {check["size"]} px: {found}. Its authors publish '
        f'{mean([check["published_AP"]])} AP on all 5,000',
        'images of val2017. Run it with `--check-port` and one folder that has the 80 categories of COCO.',
    ]


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
