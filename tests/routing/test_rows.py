"""Rows: patches are cut and joined without loss, and row order is what the layout says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moe_det.routing import join_patches, rows_of, split_patches
from moe_det.routing.rows import axis_spans, patch_numbers

SIZES = [(h, w) for h in (1, 2, 3, 4, 5, 7, 8, 10, 13) for w in (1, 2, 3, 6, 9, 11, 17)]


@pytest.mark.parametrize('cells', range(1, 6))
def test_cells_tile_an_axis_and_windows_hold_their_neighbours(cells):
    for length in range(1, 41):
        window, spans = axis_spans(length, cells)
        assert len(spans) == min(cells, length)
        covered = []
        for span in spans:
            first, last = span.start + span.skip, span.start + span.skip + span.keep  # the cell
            covered += range(first, last)
            assert span.start >= 0
            assert span.start + window <= length
            # at least one pixel of the neighbour on each inner side
            assert first == 0 or span.start < first
            assert last == length or span.start + window > last
        assert covered == list(range(length))
        keeps = [span.keep for span in spans]
        assert max(keeps) - min(keeps) <= 1


@pytest.mark.parametrize('grid', range(1, 6))
def test_join_undoes_split(grid):
    for height, width in SIZES:
        maps = torch.randn(2, 3, height, width)
        windows = split_patches(maps, grid)
        assert len(windows) == 2 * min(grid, height) * min(grid, width)
        assert torch.equal(join_patches(windows, height, width, grid), maps)


@pytest.mark.parametrize('grid', range(1, 6))
def test_a_convolution_on_windows_is_the_convolution_on_the_map(grid):
    kernel, bias = torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    for height, width in SIZES:
        maps = torch.randn(2, 3, height, width, dtype=torch.float64)
        windows = F.conv2d(split_patches(maps, grid), kernel, bias, padding=1)
        joined = join_patches(windows, height, width, grid)
        torch.testing.assert_close(joined, F.conv2d(maps, kernel, bias, padding=1), rtol=0, atol=1e-12)


def test_a_grid_of_one_is_the_map():
    maps = torch.randn(2, 3, 5, 7)
    assert torch.equal(split_patches(maps, 1), maps)


def test_without_images():
    windows = split_patches(torch.zeros(0, 3, 5, 7), 2)
    assert windows.shape[0] == 0
    assert join_patches(windows, 5, 7, 2).shape == (0, 3, 5, 7)


def test_windows_of_another_size_are_refused():
    windows = split_patches(torch.randn(1, 2, 8, 8), 2)  # windows of 5 x 5
    with pytest.raises(ValueError, match=r'a window of 5x5 came back as 3x3'):
        join_patches(windows[:, :, 1:-1, 1:-1], 8, 8, 2)


def test_patches_are_image_major_and_row_by_row():
    # pixel value = 100 * image + 10 * y + x on a 4 x 4 map cut into 2 x 2 cells of 2 x 2
    image, y, x = torch.meshgrid(torch.arange(2), torch.arange(4), torch.arange(4), indexing='ij')
    maps = (100 * image + 10 * y + x)[:, None].float()
    rows, layout = rows_of([maps], 'patch', 2)
    windows = rows[0]
    # 4 = 2 cells of 2 pixels and a halo of 1: windows of 3 from 0 or 1
    corners = [window[0, 0, 0].item() for window in windows]
    assert corners == [0, 1, 10, 11, 100, 101, 110, 111]
    assert layout.images().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_layouts():
    maps = [torch.zeros(2, 1, 5, 5), torch.zeros(2, 1, 1, 3)]
    rows, layout = rows_of(maps, 'level')
    assert all(row is feature for row, feature in zip(rows, maps, strict=True))
    assert layout.level_rows == (2, 2)
    assert layout.levels().tolist() == [0, 0, 1, 1]
    assert layout.images().tolist() == [0, 1, 0, 1]

    _, layout = rows_of(maps, 'level', first_level=3)
    assert layout.levels().tolist() == [3, 3, 4, 4]

    rows, layout = rows_of(maps, 'image')
    assert len(rows) == 2
    assert layout.level_rows == (2,)
    assert layout.levels().tolist() == [0, 0]
    assert layout.images().tolist() == [0, 1]

    rows, layout = rows_of(maps, 'patch', 2)  # 2 x 2 cells, then 1 x 2 because one pixel cannot be cut
    assert [len(row) for row in rows] == [8, 4]
    assert layout.patches == (4, 2)
    assert layout.level_rows == (8, 4)
    assert layout.levels().tolist() == [0] * 8 + [1] * 4
    assert layout.images().tolist() == [0] * 4 + [1] * 4 + [0, 0, 1, 1]


@pytest.mark.parametrize('halo', [1, 2, 3])
def test_rows_hold_as_many_neighbours_as_asked_for(halo):
    # a layer that sees halo pixels around its own gives every pixel what it gives on the whole map
    maps = [torch.randn(2, 3, 9, 12, dtype=torch.float64), torch.randn(2, 3, 3, 2, dtype=torch.float64)]
    size = 2 * halo + 1
    kernel = torch.randn(4, 3, size, size, dtype=torch.float64)
    rows, layout = rows_of(maps, 'patch', 3, halo=halo)
    assert layout == rows_of(maps, 'patch', 3)[1]
    for windows, x in zip(rows, maps, strict=True):
        expected = F.conv2d(x, kernel, padding=halo)
        found = join_patches(F.conv2d(windows, kernel, padding=halo), *x.shape[2:], 3, halo)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('grid', [1, 2, 3, 5])
def test_patch_numbers_are_those_of_the_patches_that_write_the_pixels(grid):
    for height in (1, 2, 3, 4, 5, 7, 10, 13):
        for width in (1, 3, 8, 11):
            windows = split_patches(torch.zeros(1, 1, height, width), grid)
            numbered = torch.arange(len(windows)).reshape(-1, 1, 1, 1).expand_as(windows)
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
            expected = join_patches(numbered, height, width, grid)[0, 0]
            assert torch.equal(patch_numbers(y, x, height, width, grid), expected)
