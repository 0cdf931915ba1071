"""Cells of patches, against the cutting itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_det.analysis.patches import patch_cells, patch_grid
from moe_det.routing.rows import join_patches, split_patches


@pytest.mark.parametrize(('size', 'grid'), [((6, 9), 3), ((7, 5), 2), ((1, 8), 4), ((2, 3), 5), ((4, 4), 1)])
def test_cells_are_the_pixels_that_a_patch_writes(size, grid):
    windows = split_patches(torch.zeros(1, 1, *size), grid)
    numbered = windows + torch.arange(len(windows)).view(-1, 1, 1, 1)
    written = join_patches(numbered, *size, grid)[0, 0].numpy()  # (H, W): number of the patch that wrote each pixel
    cells = patch_cells(size, len(windows)) * np.tile(size[::-1], 2)
    assert len(cells) == len(windows)
    drawn = np.full(size, -1)
    for number, (x1, y1, x2, y2) in enumerate(cells.round().astype(int)):
        drawn[y1:y2, x1:x2] = number
    assert (drawn == written).all()


def test_impossible_numbers_of_patches_are_refused():
    assert patch_grid((4, 2), 6) == 3
    with pytest.raises(ValueError, match='no grid cuts a map of 4x2 into 5 patches'):
        patch_grid((4, 2), 5)
