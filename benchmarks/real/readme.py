"""README's table of experts on photographs, from the record."""

from __future__ import annotations

from common.page import MISSING, difference, points, swap_cell, table

from .conclusion import conclusion
from .intervals import against
from .page import groups_of
from .page_experts import reports_of
from .settings import BASELINE, SETTINGS

NAME = 'real_images'  # of the marks in README
SHOWN = {
    BASELINE: 'without experts',
    'kernels, image': 'mixed kernels, 8 copies',
    'shards, image': 'shards, 2 of 4 copies',
}
HEADS = ('photographs', 'detector', 'seeds', 'AP', 'AP more than without experts', 'AP when images swap routes')
NOTHING = 'No photographs have been trained on yet.'


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
