"""The level of two-stage detectors: that of the pyramid from which a region of interest is pooled."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def region_extractor(model: nn.Module) -> nn.Module | None:
    """What pools the regions of a two-stage detector from one level each, in a cascade at first; or None."""
    extractor = getattr(getattr(model, 'roi_head', None), 'bbox_roi_extractor', None)
    if isinstance(extractor, nn.ModuleList):
        extractor = extractor[0]
    return extractor if hasattr(extractor, 'map_roi_levels') else None


def region_levels(extractor: nn.Module, boxes: Tensor) -> Tensor:
    """(n,) level that the extractor pools boxes from.

    Args:
        extractor: of :func:`region_extractor`.
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the resized image.
    """
    return extractor.map_roi_levels(torch.cat([boxes[:, :1], boxes], dim=1), extractor.num_inputs)
