"""Tables of shaded cells, independent of where they are drawn: the page shows them as HTML, files as pictures."""

from __future__ import annotations

from dataclasses import dataclass, field

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from . import palette
from .style import WIDTH, Theme, Wording, full_axes, new_figure
from .values import Number

ROW_HEIGHT = 0.42  # inches
COLUMN_WIDTH = 0.86
LABEL_WIDTH = 1.35  # at least; long names of rows widen it
CHARACTER_WIDTH = 0.078


@dataclass(frozen=True)
class Head:
    """Label of a row or column, smaller lines below it, and the index of the size class it stands for, if any."""

    text: str
    notes: tuple[str, ...] = ()
    size: int | None = None


@dataclass(frozen=True)
class Cell:
    """A number, smaller ones below it, and a shade.

    Attributes:
        number: what the cell says.
        notes: what stands below it: an interval, a count.
        shade: name of a colour of the palette; empty for none.
        strength: the shade's opacity.
        faint: few objects stand behind the number.
    """

    number: Number
    notes: tuple[Number, ...] = ()
    shade: str = ''
    strength: float = 0.0
    faint: bool = False


@dataclass(frozen=True)
class Heat:
    """A table of cells.

    Attributes:
        corner: what the rows are.
        columns: heads of the columns.
        rows: head and cells of each row.
        groups: label and width of groups of columns, above the columns; empty for none.
    """

    corner: str
    columns: list[Head]
    rows: list[tuple[Head, list[Cell]]]
    groups: list[tuple[str, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.columns and self.rows)


def draw_heat(heat: Heat, theme: Theme, wording: Wording) -> Figure:
    """Draws a table as a figure, one line of notes per cell."""
    columns, rows = len(heat.columns), len(heat.rows)
    label_width = max([LABEL_WIDTH, *(CHARACTER_WIDTH * len(head.text) for head, _ in heat.rows)])
    width = label_width + COLUMN_WIDTH * columns
    width = max(width, WIDTH)
    figure = new_figure(width, ROW_HEIGHT * (rows + 1.4 + bool(heat.groups)), theme, wording)
    axes = full_axes(figure, width, wording)
    left = label_width / COLUMN_WIDTH * columns / max(columns, (WIDTH - label_width) / COLUMN_WIDTH)
    axes.set_xlim(-left, columns)
    axes.set_ylim(rows, -1.2 - bool(heat.groups))
    start = 0
    for label, span in heat.groups:
        axes.text(start + span / 2, -1.75, label, ha='center', va='center', weight='bold')
        axes.plot([start + 0.06, start + span - 0.06], [-1.4, -1.4], color=theme.grid, lw=1)
        start += span
    for i, head in enumerate(heat.columns):
        _head(axes, head, i + 0.5, -0.55, 'center', theme)
    for j, (head, cells) in enumerate(heat.rows):
        _head(axes, head, -left + 0.05, j + 0.5, 'left', theme)
        for i, cell in enumerate(cells):
            _cell(axes, cell, i, j, theme)
    return figure


def _head(axes, head: Head, x: float, y: float, align: str, theme: Theme) -> None:
    colour = theme.ink if head.size is None else palette.size_colour(head.size)
    weight = 'normal' if head.size is None else 'bold'
    shift = 0.2 if head.notes else 0
    axes.text(x, y - shift, head.text, ha=align, va='center', color=colour, weight=weight, size=9)
    if head.notes:
        axes.text(x, y + 0.22, ', '.join(head.notes), ha=align, va='center', size=6.5, color=theme.muted)


def _cell(axes, cell: Cell, i: int, j: int, theme: Theme) -> None:
    face = theme.surface
    if cell.shade:
        face = palette.over(palette.LIGHT[cell.shade], palette.LIGHT['surface'], cell.strength)
    axes.add_patch(Rectangle((i, j), 1, 1, facecolor=face, edgecolor=theme.grid, lw=0.6))
    notes = '  '.join(note.text for note in cell.notes if note.text)
    shift = 0.16 if notes else 0
    style = 'italic' if cell.faint else 'normal'
    axes.text(i + 0.5, j + 0.5 - shift, cell.number.text, ha='center', va='center', size=9, style=style)
    if notes:
        axes.text(i + 0.5, j + 0.76, notes, ha='center', va='center', size=5.5)
