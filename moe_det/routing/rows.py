"""Routing rows: what one decision of the gate is about.

Shape letters: N images, R rows, C channels, H, W; a *map* is the (N, C, H, W) tensor of one level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

UNITS = ('level', 'image', 'patch')
HALO = 1  # pixels of its neighbours that a patch sees, unless more are requested


@dataclass(frozen=True)
class Span:
    """One axis of a patch: rows ``start : start + window`` are read, ``keep`` rows from ``skip`` on are written."""

    start: int
    skip: int
    keep: int


def axis_spans(length: int, cells: int, halo: int = HALO) -> tuple[int, list[Span]]:
    """Cuts an axis into cells that all read a window of the same length.

    Cells differ by at most one pixel. Each window holds its cell and at least ``halo`` pixels on each inner side.
    Windows at the border are shifted inwards instead of padded, so an expert meets the map's true border and its
    own zero padding acts where a dense branch's would.

    Args:
        length: pixels of the axis.
        cells: wanted number of cells; an axis shorter than that gets one cell per pixel.
        halo: pixels of the neighbouring cells to read.

    Returns:
        The common window length and one :class:`Span` per cell.
    """
    cells = max(1, min(cells, length))
    bounds = [i * length // cells for i in range(cells + 1)]
    largest = max(b - a for a, b in zip(bounds, bounds[1:], strict=False))
    window = min(length, largest + halo * min(2, cells - 1))
    spans = []
    for begin, end in zip(bounds, bounds[1:], strict=False):
        start = min(max(begin - halo, 0), length - window)
        spans.append(Span(start, begin - start, end - begin))
    return window, spans


def split_patches(feature: Tensor, grid: int, halo: int = HALO) -> Tensor:
    """Cuts a map into a ``grid`` x ``grid`` of overlapping windows.

    Args:
        feature: (N, C, H, W).
        grid: cells per axis; an axis shorter than ``grid`` is cut into single pixels.
        halo: pixels of the neighbours that each window holds.

    Returns:
        (N * P, C, h, w), image-major, then row by row; P is the number of patches.
    """
    height, rows = axis_spans(feature.shape[2], grid, halo)
    width, columns = axis_spans(feature.shape[3], grid, halo)
    windows = [feature[:, :, y.start : y.start + height, x.start : x.start + width] for y in rows for x in columns]
    return torch.stack(windows, dim=1).flatten(0, 1)


def join_patches(windows: Tensor, height: int, width: int, grid: int, halo: int = HALO) -> Tensor:
    """Crops the halo off and puts patches back: the inverse of :func:`split_patches` for any channel number.

    Args:
        windows: (N * P, C', h, w) as ordered by :func:`split_patches`.
        height: H of the map.
        width: W of the map.
        grid: as given to :func:`split_patches`.
        halo: as given to :func:`split_patches`.

    Returns:
        (N, C', H, W).

    Raises:
        ValueError: the windows do not have the size that they were cut with (an expert that changes it).
    """
    window_height, rows = axis_spans(height, grid, halo)
    window_width, columns = axis_spans(width, grid, halo)
    if tuple(windows.shape[2:]) != (window_height, window_width):
        raise ValueError(
            f"unit='patch' needs experts that keep the spatial size; a window of {window_height}x{window_width} "
            f'came back as {windows.shape[2]}x{windows.shape[3]}'
        )
    windows = windows.unflatten(0, (-1, len(rows) * len(columns)))
    lines = []
    for i, y in enumerate(rows):
        cells = [
            windows[:, i * len(columns) + j, :, y.skip : y.skip + y.keep, x.skip : x.skip + x.keep]
            for j, x in enumerate(columns)
        ]
        lines.append(torch.cat(cells, dim=3))
    return torch.cat(lines, dim=2)


def patch_numbers(y: Tensor, x: Tensor, height: int, width: int, grid: int) -> Tensor:
    """Number of the patch that writes each pixel of a map, as :func:`split_patches` counts them.

    Args:
        y: integer rows, any shape.
        x: integer columns, same shape and device.
        height: H of the map.
        width: W of the map.
        grid: as given to :func:`split_patches`; 1 gives zeros.
    """
    rows, columns = min(grid, height), min(grid, width)
    # cell i begins at i * length // cells: the last i with i * length < (pixel + 1) * cells, without a table to copy
    row, column = ((y + 1) * rows - 1) // height, ((x + 1) * columns - 1) // width
    return row * columns + column


@dataclass(frozen=True)
class RowLayout:
    """How the rows of one call lie: per level, image-major, patches innermost.

    Attributes:
        unit: one of ``UNITS``.
        num_images: N.
        patches: rows per image of each level, 1 except for ``unit='patch'``.
        first_level: level number of the first map (a layer that is called once per level counts its calls).
        map_sizes: (H, W) of each level.
    """

    unit: str
    num_images: int
    patches: tuple[int, ...]
    first_level: int = 0
    map_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def level_rows(self) -> tuple[int, ...]:
        """Rows of each level; ``unit='image'`` has one group of rows that serves all levels."""
        if self.unit == 'image':
            return (self.num_images,)
        return tuple(self.num_images * p for p in self.patches)

    def levels(self) -> Tensor:
        """(R,) level number of each row; 0 for ``unit='image'``, whose rows belong to no level."""
        if self.unit == 'image':
            return torch.zeros(self.num_images, dtype=torch.long)
        # not repeat_interleave, whose result has a size that compilers do not know
        return torch.cat([torch.full((rows,), self.first_level + i) for i, rows in enumerate(self.level_rows)])

    def images(self) -> Tensor:
        """(R,) position of each row's image in the batch."""
        return torch.cat([torch.arange(images).repeat_interleave(rows) for images, rows in self.blocks()])

    def numbers(self) -> Tensor:
        """(R,) position of each row among those of its image and level."""
        return torch.cat([torch.arange(rows).repeat(images) for images, rows in self.blocks()])

    def blocks(self) -> list[tuple[int, int]]:
        """Of each level the number of images and of rows that each of them has; the levels' rows follow each other."""
        return [(self.num_images, p) for p in (self.patches if self.unit != 'image' else (1,))]


def rows_of(
    maps: Sequence[Tensor], unit: str, grid: int = 1, first_level: int = 0, halo: int = HALO
) -> tuple[list[Tensor], RowLayout]:
    """Cuts the maps of one call into routing rows.

    Args:
        maps: L tensors (N, C, H_l, W_l).
        unit: one of ``UNITS``.
        grid: cells per axis for ``unit='patch'``.
        first_level: level number of ``maps[0]``.
        halo: pixels of its neighbours that each patch holds; whatever it is, the layout is the same.

    Returns:
        L tensors whose first axis are rows, and their layout.
    """
    layout = layout_of(maps, unit, grid, first_level)
    if unit != 'patch':
        return list(maps), layout
    return [split_patches(feature, grid, halo) for feature in maps], layout


def layout_of(maps: Sequence[Tensor], unit: str, grid: int = 1, first_level: int = 0) -> RowLayout:
    """Where the rows lie that :func:`rows_of` cuts maps of these sizes into; their channels do not matter."""
    sizes = tuple((f.shape[2], f.shape[3]) for f in maps)
    patches = (1,) * len(maps)
    if unit == 'patch':
        patches = tuple(len(axis_spans(height, grid)[1]) * len(axis_spans(width, grid)[1]) for height, width in sizes)
    return RowLayout(unit, maps[0].shape[0], patches, first_level, sizes)
