"""How many objects of which size an image has, as a point that images can be compared by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

SMALLEST = 3  # log2 of the first bin's size in pixels
BINS = 7  # 8, 16, ..., 512 pixels


def box_size_histograms(instances: Sequence[InstanceData]) -> Tensor:
    """The share of an image's boxes around each size; sizes are the square root of the area in input pixels.

    Bins stand at 8, 16, ..., 512 pixels. A box between two bins counts for both, in proportion to its nearness in
    octaves, so that a pixel more or less changes little; one outside counts for the nearest bin.

    Args:
        instances: ground truth of each image, with ``bboxes`` (n, 4) x1, y1, x2, y2.

    Returns:
        (N, 7); a row sums to 1, or to 0 for an image without boxes.
    """
    histograms = []
    for image in instances:
        boxes = get_box_tensor(image.bboxes).detach().float()
        area = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)
        at = (area.clamp_min(1).log2() / 2 - SMALLEST).clamp(0, BINS - 1)
        share = (1 - (at[:, None] - torch.arange(BINS, device=at.device)).abs()).clamp_min(0)
        histograms.append(share.sum(0) / max(len(boxes), 1))
    return torch.stack(histograms)
