"""How many objects of which size an image or a patch has, as a point that routing rows can be compared by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from ..routing.router import Router
from ..routing.rows import RowLayout, layout_of, patch_numbers

SMALLEST = 3  # log2 of the first bin's size in pixels
BINS = 7  # 8, 16, ..., 512 pixels


def supply_box_sizes(
    router: Router,
    instances: Sequence[InstanceData],
    maps: Sequence[Tensor],
    grid: int | None,
    strides: Sequence[tuple[int, int]],
) -> None:
    """Gives a router the sizes of the boxes of each routing row: of the image, or with ``unit='patch'`` of the patch.

    Args:
        router: of a head that is called once per step.
        instances: ground truth of each image, with ``bboxes`` in input pixels.
        maps: L tensors of the pyramid's sizes.
        grid: cells per axis for ``unit='patch'``.
        strides: per level, input pixels per pixel of the map, as (x, y).
    """
    if router.unit == 'patch':
        layout = layout_of(maps, 'patch', grid)
        router.supply('box_sizes', patch_box_size_histograms(instances, layout, grid, strides), per_row=True)
    else:
        router.supply('box_sizes', box_size_histograms(instances))


def box_size_histograms(instances: Sequence[InstanceData]) -> Tensor:
    """The share of an image's boxes around each size; sizes are the square root of the area in input pixels.

    Bins stand at 8, 16, ..., 512 pixels. A box between two bins counts for both, in proportion to its nearness in
    octaves, so that a pixel more or less changes little; one outside counts for the nearest bin.

    Args:
        instances: ground truth of each image, with ``bboxes`` (n, 4) x1, y1, x2, y2.

    Returns:
        (N, 7); a row sums to 1, or to 0 for an image without boxes.
    """
    return _histograms(instances, len(instances), lambda image, boxes: torch.full_like(boxes[:, 0], image).long())


def patch_box_size_histograms(
    instances: Sequence[InstanceData], layout: RowLayout, grid: int, strides: Sequence[tuple[int, int]]
) -> Tensor:
    """:func:`box_size_histograms` for patches: of the boxes whose centre lies in the patch.

    A centre lies in the patch that writes the map's pixel under it; outside the map the nearest pixel counts.

    Args:
        instances: ground truth of each image, with ``bboxes`` in input pixels.
        layout: where the rows lie, with ``unit='patch'``.
        grid: cells per axis.
        strides: per level, input pixels per pixel of the map, as (x, y).

    Returns:
        (R, 7), in the order of the rows; a row sums to 1, or to 0 for a patch without centres.
    """
    levels = []
    for (height, width), patches, stride in zip(layout.map_sizes, layout.patches, strides, strict=True):
        lengths = torch.tensor([width, height])
        step = torch.tensor(stride)

        def rows(image: int, boxes: Tensor, lengths=lengths, step=step, patches=patches) -> Tensor:
            at = ((boxes[:, :2] + boxes[:, 2:]) / 2 / step.to(boxes)).floor()
            x, y = torch.minimum(at.clamp_min(0), lengths.to(at) - 1).long().t().contiguous()
            return image * patches + patch_numbers(y, x, int(lengths[1]), int(lengths[0]), grid)

        levels.append(_histograms(instances, layout.num_images * patches, rows))
    return torch.cat(levels)


def _histograms(instances: Sequence[InstanceData], num_rows: int, rows: Callable[[int, Tensor], Tensor]) -> Tensor:
    """(num_rows, 7) histograms of the boxes that ``rows(image, boxes)`` assigns to each row."""
    boxes = [get_box_tensor(image.bboxes).detach().float() for image in instances]
    row = torch.cat([rows(image, of_image) for image, of_image in enumerate(boxes)])
    boxes = torch.cat(boxes)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)
    at = (area.clamp_min(1).log2() / 2 - SMALLEST).clamp(0, BINS - 1)
    share = (1 - (at[:, None] - torch.arange(BINS, device=at.device)).abs()).clamp_min(0)
    counts = torch.bincount(row, minlength=num_rows)
    return share.new_zeros(num_rows, BINS).index_add(0, row, share) / counts.clamp_min(1)[:, None]
