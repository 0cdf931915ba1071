"""Where the patches of a map lie, from how many there are."""

from __future__ import annotations

import numpy as np

from ..routing.rows import axis_spans


def patch_grid(size: tuple[int, int], patches: int) -> int:
    """Returns the grid that cuts a map into so many patches.

    Args:
        size: (H, W) of the map.
        patches: P; 1 without patches.

    Raises:
        ValueError: no grid does.
    """
    for grid in range(1, max(size) + 1):
        if min(grid, size[0]) * min(grid, size[1]) == patches:
            return grid
    raise ValueError(f'no grid cuts a map of {size[0]}x{size[1]} into {patches} patches')


def patch_cells(size: tuple[int, int], patches: int) -> np.ndarray:
    """Returns (P, 4) x1, y1, x2, y2 of each patch without its halo, as fractions of the map, row by row.

    Args:
        size: (H, W) of the map.
        patches: P; 1 without patches.
    """
    rows, columns = (axis_spans(length, patch_grid(size, patches))[1] for length in size)
    starts = [(x.start + x.skip, y.start + y.skip, x.keep, y.keep) for y in rows for x in columns]
    corners = [(x, y, x + width, y + height) for x, y, width, height in starts]
    return np.array(corners, dtype=float) / np.tile(size[::-1], 2)
