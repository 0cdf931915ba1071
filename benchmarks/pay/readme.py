"""README's table of experts that pay, from the record."""

from __future__ import annotations

from common.page import MISSING, difference, points, swap_cell, table

from .conclusion import conclusion
from .settings import TWICE
from .statistics import against
from .table import BASELINE

NAME = 'experts_that_pay'  # of the marks in README
SHOWN = {
    BASELINE: 'without experts',
    'kernels, image, 8 copies': 'mixed kernels, 8 copies (`retinanet_moe_from_dense.py`)',
    'kernels, image': 'mixed kernels, 4 copies',
    'shards, image': 'shards, 2 of 4 copies',
    TWICE: 'without experts, a head of twice the width',
}


def results(record: dict) -> str:
    """Markdown: a row for each detector of ``SHOWN`` that is finished, whether experts pay and whether they differ."""
    rows = {row['name']: row for row in record['rows']}
    baseline, lines = rows.get(BASELINE), []
    for name, words in SHOWN.items():
        if name not in rows:
            continue
        row = rows[name]
        versus = MISSING if name == BASELINE or baseline is None else difference(against(row, baseline, 'AP'))
        swap = swap_cell([(run.get('swap') or {}).get('whole') for run in row['seeds']], 'AP')
        cost = f'{row["multiply_adds_over_dense"]:.3f}'
        lines.append([words, cost, str(len(row['seeds'])), points([run['AP'] for run in row['seeds']]), versus, swap])
    heads = ['detector', 'multiply-adds', 'seeds', 'AP', 'AP more than without experts', 'AP when images swap routes']
    return '\n'.join([*table(heads, lines), '', *conclusion(rows)[1:3]])
