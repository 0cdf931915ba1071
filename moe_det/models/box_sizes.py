"""How many objects of which size an image or a patch has, as a point that routing rows can be compared by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from ..routing.router import Router
from ..routing.rows import RowLayout, layout_of, patch_numbers

SMALLEST = 3  # log2 of the first bin's size in pixels
BINS = 7  # 8, 16, ..., 512 pixels


def supply_box_sizes(
    routers: Sequence[Router],
    instances: Sequence[InstanceData],
    maps: Sequence[Tensor],
    grid: int,
    strides: Sequence[tuple[int, int]],
) -> None:
    """Gives routers the sizes of the boxes of each routing row: of the image, or with ``unit='patch'`` of the patch.

    Args:
        routers: at least one, all of a head that is called once per step.
        instances: ground truth of each image, with ``bboxes`` in input pixels.
        maps: L tensors of the pyramid's sizes.
        grid: cells per axis for ``unit='patch'``.
        strides: per level, input pixels per pixel of the map, as (x, y).
    """
    per_row = routers[0].unit == 'patch'
    if per_row:
        sizes = patch_box_size_histograms(instances, layout_of(maps, 'patch', grid), grid, strides)
    else:
        sizes = box_size_histograms(instances)
    for router in routers:
        router.supply('box_sizes', sizes, per_row)


def box_size_histograms(instances: Sequence[InstanceData]) -> Tensor:
    """The share of an image's boxes around each size; sizes are the square root of the area in input pixels.

    Bins stand at 8, 16, ..., 512 pixels. A box between two bins counts for both, in proportion to its nearness in
    octaves, so that a pixel more or less changes little; one outside counts for the nearest bin.

    Args:
        instances: ground truth of each image, with ``bboxes`` (n, 4) x1, y1, x2, y2.

    Returns:
        (N, 7); a row sums to 1, or to 0 for an image without boxes.
    """
    boxes, image = _boxes_and_images(instances)
    return _histograms(boxes, image, len(instances))


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
    boxes, image = _boxes_and_images(instances)
    centre_x, centre_y = ((boxes[:, :2] + boxes[:, 2:]) / 2).unbind(1)
    rows, first = [], 0
    # sizes and strides stay numbers of Python: as tensors each would be a copy that the host waits for
    for (height, width), patches, stride in zip(layout.map_sizes, layout.patches, strides, strict=True):
        x = (centre_x / stride[0]).floor().clamp(0, width - 1).long()
        y = (centre_y / stride[1]).floor().clamp(0, height - 1).long()
        rows.append(first + image * patches + patch_numbers(y, x, height, width, grid))
        first += layout.num_images * patches
    return _histograms(boxes.repeat(len(rows), 1), torch.cat(rows), first)


def _boxes_and_images(instances: Sequence[InstanceData]) -> tuple[Tensor, Tensor]:
    """(n, 4) boxes of all images, and the number (n,) of each one's image."""
    boxes = [get_box_tensor(image.bboxes).detach().float() for image in instances]
    image = torch.tensor([image for image, of_image in enumerate(boxes) for _ in of_image], dtype=torch.long)
    return torch.cat(boxes), image.to(boxes[0].device, non_blocking=True)


def _histograms(boxes: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """(num_rows, 7) histograms of (n, 4) boxes, each of which belongs to a row."""
    area = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)
    at = (area.clamp_min(1).log2() / 2 - SMALLEST).clamp(0, BINS - 1)
    share = (1 - (at[:, None] - torch.arange(BINS, device=at.device)).abs()).clamp_min(0)
    # not bincount, which waits for the largest number; a last column counts
    sums = share.new_zeros(num_rows, BINS + 1).index_add(0, row, torch.cat([share, torch.ones_like(share[:, :1])], 1))
    return sums[:, :BINS] / sums[:, BINS:].clamp_min(1)
