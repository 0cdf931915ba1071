"""One picture and the experts that each level or patch of it was given.

Works on arrays; :mod:`moe_det.studies.image_routing` makes them from a model.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from ..analysis.ground_truth import COCO_LIMITS
from ..analysis.sizes import SIZE_NAMES, size_bins
from ..analysis.slots import top_experts
from .palette import size_colour

# hues that no size's box has; the expert's number is always printed next to them
EXPERT_COLOURS = ('#e6a700', '#7b3fb0', '#00a9b5', '#d81b60', '#6d8b00', '#5d4037', '#8fa3b0', '#283593')
TINT = 0.42
SMALLEST_TINT = 0.12  # of a row whose best expert has next to no weight
PANEL_WIDTH = 2.3  # inches
TOP_HEIGHTS = (2.6, 5.5)  # least and most of the two large pictures
MOST_LABELLED = 20  # boxes; the names of more would hide the picture
MOST_PIXELS_IN_PANEL = 360
MOST_PIXELS_ON_TOP = 1400
MOST_COLUMNS = 6
LEGEND = {
    'expert': 'Boxes by the size of the object. Below, parts list "expert: weight", tinted by their first expert.',
    'copy': 'Boxes by the size of the object. Below, parts list the copy of each shard and have a strip for each.',
}


@dataclass(frozen=True)
class Boxes:
    """Boxes on the original picture.

    Attributes:
        corners: (n, 4) x1, y1, x2, y2 in original pixels.
        areas: (n,) the area that decides about the size: the annotation's for ground truth, the box's for detections.
        labels: n texts to write at the boxes.
    """

    corners: np.ndarray
    areas: np.ndarray
    labels: Sequence[str]

    @property
    def sizes(self) -> np.ndarray:
        """(n,) 0 small, 1 medium, 2 large; an area on a limit counts as the smaller, as COCO's first match does."""
        return size_bins(self.areas)


@dataclass(frozen=True)
class RoutedLevel:
    """The decisions of one layer at one level of the pyramid.

    Attributes:
        title: which level.
        cells: (P, 4) x1, y1, x2, y2 of each decision's part of the picture, in original pixels.
        weights: (P, E) mixture weights; 0 for experts that were not chosen.
        slots: shards, of each of which a decision takes one copy; 1 without shards.
    """

    title: str
    cells: np.ndarray
    weights: np.ndarray
    slots: int = 1


@dataclass(frozen=True)
class RoutedPicture:
    """A picture, what was found on it, and how it was routed.

    Attributes:
        name: of the picture, for the title.
        pixels: (H, W, 3) uint8, RGB.
        layers: by layer path, its levels.
        detections: boxes that the detector found.
        score_thr: the least score of those.
        truths: ground truth boxes, or None where there is no annotation file.
    """

    name: str
    pixels: np.ndarray
    layers: dict[str, list[RoutedLevel]]
    detections: Boxes
    score_thr: float
    truths: Boxes | None = None


def expert_colour(expert: int) -> str:
    """Colour of an expert; repeats after eight."""
    return EXPERT_COLOURS[expert % len(EXPERT_COLOURS)]


def routing_figure(routed: RoutedPicture) -> Figure:
    """Draws the picture with boxes by size on top, and below it one panel per level of each layer.

    A panel is tinted by the expert with the largest weight, the stronger the larger; the weights of all chosen experts
    are printed where there is room. With shards it has a strip for each, tinted by the copy.
    """
    height, width = routed.pixels.shape[:2]
    columns = min(MOST_COLUMNS, max((len(levels) for levels in routed.layers.values()), default=1))
    across = max(PANEL_WIDTH * columns, 2 * 3.6)
    panel_height = min(max(across / columns * height / width, 0.9), 4.0)
    top_height = min(max(0.48 * across * height / width, TOP_HEIGHTS[0]), TOP_HEIGHTS[1]) + 0.9
    lines = {layer: -(-len(levels) // columns) for layer, levels in routed.layers.items()}
    below = [lines[layer] * (panel_height + 0.3) + 0.35 for layer in routed.layers]
    figure = Figure(figsize=(across, top_height + sum(below)), layout='constrained', facecolor='white')
    FigureCanvasAgg(figure)
    parts = figure.subfigures(1 + len(below), 1, height_ratios=[top_height, *below], squeeze=False)[:, 0]
    _draw_boxes_part(parts[0], routed)
    small = shrunk(routed.pixels, MOST_PIXELS_IN_PANEL)
    boxes = routed.truths if routed.truths is not None else routed.detections
    for part, (layer, levels) in zip(parts[1:], routed.layers.items(), strict=True):
        _draw_layer(part, layer, levels, columns, small, routed, boxes)
    return figure


def shrunk(pixels: np.ndarray, longest: int) -> np.ndarray:
    """The picture with at most ``longest`` pixels along its longer side."""
    factor = longest / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _show(axes: Axes, pixels: np.ndarray, routed: RoutedPicture, **options) -> None:
    height, width = routed.pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation='antialiased', **options)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_boxes_part(part: SubFigure, routed: RoutedPicture) -> None:
    found = _counted(len(routed.detections.areas), 'detection')
    kinds = [(f'{found}, score ≥ {routed.score_thr:g}', routed.detections)]
    if routed.truths is not None:
        kinds.append((_counted(len(routed.truths.areas), 'ground truth'), routed.truths))
    part.suptitle(_shortened(routed.name, 70), size=11, weight='bold', parse_math=False)
    pixels = shrunk(routed.pixels, MOST_PIXELS_ON_TOP)
    for axes, (title, boxes) in zip(np.atleast_1d(part.subplots(1, len(kinds))), kinds, strict=True):
        _show(axes, pixels, routed)
        axes.set_title(title, size=9)
        _draw_boxes(axes, boxes, 1.6, len(boxes.areas) <= MOST_LABELLED)
    limits = (f'≤ {COCO_LIMITS[0]:g}²', f'≤ {COCO_LIMITS[1]:g}²', f'> {COCO_LIMITS[1]:g}²')
    lines = [
        Line2D([], [], color=size_colour(i), lw=2.5, label=f'{name} ({limit} px)')
        for i, (name, limit) in enumerate(zip(SIZE_NAMES, limits, strict=True))
    ]
    every = [level for levels in routed.layers.values() for level in levels]
    tinted = max((level.weights.shape[1] // level.slots for level in every), default=0)
    what = 'copy' if any(level.slots > 1 for level in every) else 'expert'
    tints = [Patch(color=expert_colour(e), alpha=0.8, label=f'{what} {e}') for e in range(tinted)]
    style = dict(frameon=False, fontsize=8, handlelength=1.4, columnspacing=1.2)
    legend = part.legend(
        handles=lines + tints, loc='outside lower center', ncols=min(7, len(lines + tints)), title=LEGEND[what], **style
    )
    legend.get_title().set_fontsize(8)


def _draw_boxes(axes: Axes, boxes: Boxes, line: float, labelled: bool) -> None:
    halo: list[patheffects.AbstractPathEffect] = [
        patheffects.withStroke(linewidth=line + 1.4, foreground='white', alpha=0.85)
    ]
    for (x1, y1, x2, y2), size, label in zip(boxes.corners, boxes.sizes, boxes.labels, strict=True):
        colour = size_colour(int(size))
        frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=line)
        frame.set_path_effects(halo)
        axes.add_patch(frame)
        if labelled and label:
            text = axes.text(x1, y1 - 1, label, color=colour, size=6, va='bottom', clip_on=True, parse_math=False)
            text.set_path_effects([patheffects.withStroke(linewidth=1.8, foreground='white')])


def _draw_layer(
    part: SubFigure,
    layer: str,
    levels: Sequence[RoutedLevel],
    columns: int,
    pixels: np.ndarray,
    routed: RoutedPicture,
    boxes: Boxes,
) -> None:
    experts, slots = levels[0].weights.shape[1], levels[0].slots
    words = f'{experts} experts' if slots == 1 else f'{slots} shards of {experts // slots} copies'
    part.suptitle(f'{layer}: {words}', x=0.01, ha='left', size=9.5, weight='bold', parse_math=False)
    grid = part.subplots(-(-len(levels) // columns), columns, squeeze=False)
    grey = 255 - (255 - pixels.mean(axis=2)) * 0.55  # pale, so that tints stay clear
    for axes in grid.flat[len(levels) :]:
        axes.set_axis_off()
    for axes, level in zip(grid.flat, levels, strict=False):
        _show(axes, grey, routed, cmap='gray', vmin=0, vmax=255)
        axes.set_title(level.title, size=8)
        for cell, weights in zip(level.cells, level.weights, strict=True):
            _draw_cell(axes, cell, weights, len(level.cells), level.slots)
        _draw_boxes(axes, boxes, 0.8, False)


def _draw_cell(axes: Axes, cell: np.ndarray, weights: np.ndarray, cells: int, slots: int) -> None:
    x1, y1, x2, y2 = cell
    if x2 <= x1 or y2 <= y1:  # a patch that lies in the padding alone
        return
    edge = dict(edgecolor='white', linewidth=0.9) if cells > 1 else dict(linewidth=0)
    width = (x2 - x1) / slots
    for slot, best in enumerate(top_experts(weights[None], slots)[0].tolist()):
        tint = SMALLEST_TINT + (TINT - SMALLEST_TINT) * float(weights[best])
        face = (expert_colour(best % (len(weights) // slots)), tint)
        axes.add_patch(Rectangle((x1 + slot * width, y1), width, y2 - y1, facecolor=face, **edge))
    text = axes.annotate(
        cell_text(weights, cells, slots),
        (x1, y1),
        xytext=(2.5, -2.5),  # points, from the upper left corner: most objects are not there
        textcoords='offset points',
        ha='left',
        va='top',
        size=8.5 if cells == 1 else 6.5 if cells <= 9 else 5.5,
        color='black',
        linespacing=1.25,
        annotation_clip=False,
    )
    text.set_path_effects([patheffects.withStroke(linewidth=2.2, foreground='white', alpha=0.9)])


def cell_text(weights: np.ndarray, cells: int, slots: int = 1) -> str:
    """What a cell says: every chosen expert with its weight, best first; only the best where cells are small.

    With shards the copy of each, ``2 0``: its weight is always 1.
    """
    if slots > 1:
        return ' '.join(str(expert % (len(weights) // slots)) for expert in top_experts(weights[None], slots)[0])
    order = np.argsort(-weights, kind='stable')
    chosen = [int(expert) for expert in order if weights[expert] > 0]
    if not chosen:
        return 'none'
    if cells > 16:
        return str(chosen[0])
    if cells > 9:
        return f'{chosen[0]}: {weights[chosen[0]]:.2f}'
    shown = [f'{expert}: {weights[expert]:.2f}' for expert in chosen[:4]]
    return '\n'.join(shown + ['…'] * (len(chosen) > 4))


def _counted(number: int, what: str) -> str:
    return f'{number} {what}' + ('s' if number != 1 else '')


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else '…' + textwrap.shorten(text[-longest:], longest)
