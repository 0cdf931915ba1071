"""The page of benchmarks/mixture_of_detectors.py."""

from __future__ import annotations

from common.intervals import against
from common.page import MEASURES, MISSING, bullets, counted, difference, made, points, section, swap_cell, table

from .settings import ENSEMBLE, EPOCHS, GATE, GATE_EPOCHS, ONE, ROWS


def page(record: dict) -> str:
    """Markdown of a record."""
    rows = {row['name']: row for row in record['rows']}
    data = record['data']
    lines = [
        '# Whole detectors as experts',
        '',
        made(record),
        '',
        f'Shapes of {data["size"]} px whose objects are small or large by scene: {data["train"]} training images of',
        f'far scenes, of near ones, and of all; {data["val"]} of all for validation. Detectors of',
        f'`configs/shapes/retinanet_dense.py`, {EPOCHS} epochs; gates of `configs/shapes/mixture_of_detectors.py`,',
        f'{GATE_EPOCHS} epochs on all scenes, the detectors frozen. Multiply-adds are over those of one detector.',
        "Differences are in points, seed by seed, with Student's 95 % interval.",
        *section('What came out', bullets(conclusion(rows))),
    ]
    in_words = bullets(f'{name}: {row.about}' for name, row in ROWS.items())
    lines += section('Average precision', _precision_table(rows), ['What the rows are:'], in_words)
    lines += section('What the gate does', _gate_table(rows))
    lines += section('What was expected', ['Written down before the runs.'], bullets(record['expected']))
    return '\n'.join(lines) + '\n'


def conclusion(rows: dict[str, dict]) -> list[str]:
    """What the record says, in sentences."""
    sentences = []
    for other, words in (
        (ENSEMBLE, 'mixing them with equal weights'),
        (ONE, 'one detector on all scenes for as many images'),
    ):
        if GATE not in rows or other not in rows:
            continue
        found = against(rows[GATE], rows[other], 'AP')
        if found is None:
            continue
        seeds = f'{found.seeds} seed' + 's' * (found.seeds > 1)
        said = 'is indistinguishable from'
        if found.seeds >= 3 and found.apart:  # the interval of three seeds leaves 0 out
            said = 'is better than' if found.mean > 0 else 'is worse than'
        sentences.append(f'The gate over two detectors {said} {words}: {difference(found)} AP, {seeds}.')
    return sentences or ['Nothing is finished.']


def _precision_table(rows: dict[str, dict]) -> list[str]:
    heads = ['row', 'seeds', 'multiply-adds', *MEASURES]
    heads += ['AP minus ensemble', 'AP minus one on all scenes, twice as long']
    cells = []
    for name, row in rows.items():
        compared = [
            difference(against(row, rows[other], 'AP')) if other in rows and other != name else ''
            for other in (ENSEMBLE, ONE)
        ]
        precisions = [points(run.get(measure) for run in row['seeds']) or MISSING for measure in MEASURES]
        cells.append([name, len(row['seeds']), f'{row["multiply_adds_over_dense"]:.2f}', *precisions, *compared])
    return table(heads, cells)


def _gate_table(rows: dict[str, dict]) -> list[str]:
    if GATE not in rows:
        return []
    seeds = rows[GATE]['seeds']
    swaps = [run['swap'] for run in seeds]
    heads = [*(f'swap: {measure}' for measure in MEASURES), 'gate entropy, bits', 'verdicts']
    entropy = sum(run['gate_entropy_bits'] for run in seeds) / len(seeds)
    cells = [*(swap_cell(swaps, measure) for measure in MEASURES), f'{entropy:.2f}']
    return table(heads, [[*cells, counted([run['verdict'] for run in seeds])]])
