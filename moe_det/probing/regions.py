"""Two-stage detectors: the level that a region of interest is pooled from, and the region that made each detection."""

from __future__ import annotations

import sys
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.models.roi_heads import BaseRoIExtractor, BaseRoIHead, CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..routing.regions import ROI
from ..routing.router import find_routers
from .findings import NO_ROW
from .provenance import ProvenanceError

NMS = 'multiclass_nms'  # mmdet's function that box heads select their detections with
LEAST_OVERLAP = 0.5  # of a region with the object that it stands for, as in the assigners of box heads


def region_extractor(model: BaseDetector) -> BaseRoIExtractor | None:
    """What pools the regions of a two-stage detector from one level each, in a cascade at first; or None."""
    extractor: Any = getattr(getattr(model, 'roi_head', None), 'bbox_roi_extractor', None)
    if isinstance(extractor, nn.ModuleList):
        extractor = extractor[0]
    return extractor if hasattr(extractor, 'map_roi_levels') else None


def region_levels(extractor: BaseRoIExtractor, boxes: Tensor) -> Tensor:
    """(n,) level that the extractor pools boxes from.

    Args:
        extractor: of :func:`region_extractor`.
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the resized image.
    """
    return extractor.map_roi_levels(torch.cat([boxes[:, :1], boxes], dim=1), extractor.num_inputs)


def region_layers(model: BaseDetector) -> list[str]:
    """MoE layers that decide about single regions; none where detections cannot be followed to them."""
    if region_extractor(model) is None or cannot_follow_regions(model.roi_head):
        return []
    return [name for name, router in find_routers(model).items() if router.unit == ROI]


def last_box_head(roi_head: BaseRoIHead) -> BBoxHead:
    """The box head whose boxes are the detections."""
    head = roi_head.bbox_head
    return head[-1] if isinstance(head, nn.ModuleList) else head


def cannot_follow_regions(roi_head: BaseRoIHead) -> str | None:
    """Why detections cannot be followed to regions of interest; None if they can."""
    if type(roi_head).predict_bbox not in (StandardRoIHead.predict_bbox, CascadeRoIHead.predict_bbox):
        return f'{type(roi_head).__name__} predicts its boxes in a way of its own'
    head = type(last_box_head(roi_head))
    for name in ('predict_by_feat', '_predict_by_feat_single'):
        if getattr(head, name, None) is not getattr(BBoxHead, name):
            return f'{head.__name__} chooses its detections in a way of its own'
    return None


@torch.no_grad()
def best_regions(regions: Tensor, boxes: Tensor) -> Tensor:
    """(n,) number of the region that overlaps each box most, ``NO_ROW`` where none does by half.

    Args:
        regions: (R, 4) x1, y1, x2, y2.
        boxes: (n, 4) in the same form.
    """
    if not len(regions):
        return torch.full((len(boxes),), NO_ROW)
    overlap, number = bbox_overlaps(boxes.to(regions), regions).max(dim=1)
    return number.masked_fill(overlap < LEAST_OVERLAP, NO_ROW)


class RegionRecorder:
    """Context manager that makes a box head add ``level`` and ``anchor`` (the region of interest) to its results.

    The regions of a cascade keep their numbers while they are refined; ``level`` is that of the last stage.

    Args:
        roi_head: of the detector.
        extractor: of :func:`region_extractor`.

    Attributes:
        regions: (R_i, 4) regions of each image of the last batch, in pixels of the resized image.

    Raises:
        ProvenanceError: the head selects in another way.
    """

    def __init__(self, roi_head: BaseRoIHead, extractor: BaseRoIExtractor) -> None:
        reason = cannot_follow_regions(roi_head)
        if reason:
            raise ProvenanceError(reason)
        self.head = last_box_head(roi_head)
        self.extractor = extractor
        self.regions: list[Tensor] = []
        self.map_sizes: list[tuple[int, int]] = []
        self.outputs: tuple = ()
        self._module = sys.modules[BBoxHead.__module__]
        self._kept: Tensor | None = None

    def __enter__(self) -> RegionRecorder:
        self._nms = getattr(self._module, NMS)
        setattr(self._module, NMS, self._follow_nms)
        # instance attributes hide the class's methods for as long as they are there
        self.head.predict_by_feat = self._follow_predict
        self.head._predict_by_feat_single = self._follow_selection
        return self

    def __exit__(self, *exception) -> None:
        setattr(self._module, NMS, self._nms)
        del self.head.predict_by_feat
        del self.head._predict_by_feat_single

    def _follow_predict(self, rois: tuple[Tensor, ...], *args, **kwargs) -> list[InstanceData]:
        self.regions = [of_image[:, 1:] for of_image in rois]
        return type(self.head).predict_by_feat(self.head, rois, *args, **kwargs)

    def _follow_selection(self, roi: Tensor, *args, **kwargs) -> InstanceData:
        self._kept = roi.new_zeros(0, dtype=torch.long)  # as it stays for an image without regions
        results = type(self.head)._predict_by_feat_single(self.head, roi, *args, **kwargs)
        results.anchor = self._kept
        results.level = region_levels(self.extractor, roi[self._kept, 1:])
        return results

    def _follow_nms(self, boxes: Tensor, scores: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        detections, labels, kept = self._nms(boxes, scores, *args, **kwargs, return_inds=True)
        self._kept = kept // (scores.shape[1] - 1)  # candidates are counted region by region, class by class
        return detections, labels
