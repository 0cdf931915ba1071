"""The table of arXiv 2302.14703: how many samples of which predicted class went to which expert."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..figures import palette, values
from ..figures.heat import Cell, Head, Heat, draw_heat
from ..figures.style import PAPER, Wording, drawing

MOST_COLUMNS = 12  # of a table in a log; more classes are listed per expert
TOP_CLASSES = 6


def expert_class_text(table: np.ndarray, classes: Sequence[str]) -> str:
    """Expert x class counts as plain text; with many classes each expert's most frequent ones.

    Args:
        table: (E, K) samples by expert and class that it predicts.
        classes: K names.
    """
    if len(classes) > MOST_COLUMNS:
        return '\n'.join(f'  expert {expert}: {_top(row, classes)}' for expert, row in enumerate(table))
    names = [name if len(name) <= 10 else f'{name[:9]}.' for name in classes]
    widths = [max(len(name), len(str(column.max()))) for name, column in zip(names, table.T, strict=True)]
    lines = ['  expert  ' + '  '.join(f'{name:>{width}}' for name, width in zip(names, widths, strict=True))]
    for expert, row in enumerate(table):
        cells = '  '.join(f'{count:>{width}}' for count, width in zip(row, widths, strict=True))
        lines.append(f'  {expert:>6}  {cells}')
    return '\n'.join(lines)


def _top(row: np.ndarray, classes: Sequence[str]) -> str:
    order = [i for i in np.argsort(-row, kind='stable')[:TOP_CLASSES] if row[i]]
    named = ', '.join(f'{classes[i]} {row[i]}' for i in order)
    return f'{row.sum()} samples' + (f': {named}' if named else '')


def expert_class_heat(table: np.ndarray, classes: Sequence[str]) -> Heat:
    """Class x expert: the counts, shaded by the share of the class that the expert has."""
    columns = [Head(f'expert {expert}', (f'n {count}',)) for expert, count in enumerate(table.sum(1))]
    rows = []
    for name, column in zip(classes, table.T, strict=True):
        shares = column / max(column.sum(), 1)
        cells = [
            Cell(values.count(int(count)), (), *palette.shade_share(float(share)))
            for count, share in zip(column, shares, strict=True)
        ]
        rows.append((Head(str(name)), cells))
    return Heat('class', columns, rows)


def expert_class_figure(table: np.ndarray, classes: Sequence[str], title: str, caption: str) -> Figure:
    """Draws :func:`expert_class_heat`; save it inside ``figures.style.drawing(PAPER)`` for the same fonts."""
    with drawing(PAPER):
        return draw_heat(expert_class_heat(table, classes), PAPER, Wording(title, caption))


def figure_pixels(figure: Figure, dpi: int = 120) -> np.ndarray:
    """(H, W, 3) bytes of a figure, for visualisation backends."""
    with drawing(PAPER):
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
