"""Figures made of pictures: each expert's top-activating images, and the routing of single images."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import palette, values
from .heat import COLUMN_WIDTH, Heat
from .pictures import Pictures
from .style import WIDTH, Theme, Wording, full_axes, new_figure
from .tables import expert_name

PER_ROW = 6
_CELL = 1.2  # inches


def favourites_figure(layer: dict, pictures: Pictures, kind: str, theme: Theme, wording: Wording) -> Figure | None:
    """One row of pictures per expert.

    Args:
        layer: of the results.
        pictures: where the files are.
        kind: ``images`` or ``objects``.
        theme: colours.
        wording: title and caption.
    """
    rows = []
    for entry in layer.get('favourites') or []:
        there = [(pictures.open(item.get('picture')), item) for item in entry.get(kind) or []]
        found = [(picture, item) for picture, item in there if picture is not None][:PER_ROW]
        if found:
            rows.append((entry['expert'], found))
    if not rows:
        return None
    columns = max(len(found) for _, found in rows)
    width = max(_CELL * (columns + 0.3), WIDTH)
    figure = new_figure(width, _CELL * len(rows), theme, wording)
    axes = full_axes(figure, width, wording)
    for j, (expert, found) in enumerate(rows):
        axes.text(-0.12, j + 0.55, expert_name(layer, expert), rotation=90, ha='right', va='center', size=8)
        for i, (picture, item) in enumerate(found):
            width, height = (extent * 0.84 / max(picture.size) for extent in picture.size)
            axes.imshow(picture, extent=(i, i + width, j + 0.12 + height, j + 0.12), interpolation='nearest')
            weight = values.fixed(item.get('weight'))
            axes.text(i, j + 0.06, f'weight {weight.text}', va='center', size=6.5, color=theme.muted)
    axes.set_xlim(-0.3, columns)
    axes.set_ylim(len(rows), 0)
    axes.set_anchor('W')
    return figure


def routing_figure(
    heats: list[tuple[str, Heat]], picture_path: str | None, pictures: Pictures, theme: Theme, wording: Wording
) -> Figure | None:
    """One image and, below it, the weights of every layer's experts level by level.

    Args:
        heats: layer name and table of weights, one per layer.
        picture_path: the picture as the results name it.
        pictures: where the files are.
        theme: colours.
        wording: title and caption.
    """
    heats = [(name, heat) for name, heat in heats if heat]
    if not heats:
        return None
    picture = pictures.open(picture_path)
    columns = max(len(heat.columns) for _, heat in heats)
    heights = [0.28 * len(heat.rows) + 0.65 for _, heat in heats]
    if picture is not None:
        heights = [2.4, *heights]
    width = max(4.9, 0.8 + 0.6 * COLUMN_WIDTH * columns)
    figure = new_figure(width, sum(heights), theme, wording)
    panels = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if picture is not None:
        axes = panels.pop(0)
        axes.imshow(picture)
        axes.set_axis_off()
    for axes, (name, heat) in zip(panels, heats, strict=True):
        _weights(axes, name, heat)
    return figure


def _weights(axes: Axes, name: str, heat: Heat) -> None:
    rgb = [
        [palette.over(palette.LIGHT[c.shade or 'share'], palette.LIGHT['surface'], c.strength) for c in cells]
        for _, cells in heat.rows
    ]
    numbers = [[tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in line] for line in rgb]
    axes.imshow(numbers, aspect='auto')
    for j, (_, cells) in enumerate(heat.rows):
        for i, cell in enumerate(cells):
            axes.text(i, j, cell.number.text, ha='center', va='center', size=7)
    axes.set_yticks(range(len(heat.rows)), [head.text for head, _ in heat.rows], size=8)
    axes.set_xticks(range(len(heat.columns)), [head.text for head in heat.columns], size=8)
    axes.tick_params(length=0)
    axes.set_title(f'{name}: weight by expert and level', loc='left', size=8.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
