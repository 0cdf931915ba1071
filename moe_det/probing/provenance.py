"""Where a detection came from: the pyramid level and the anchor that produced it.

mmdet forgets both between the score filter and the end of NMS. While a :class:`ProvenanceRecorder` is entered, a
one-stage head's results carry them as two more fields, ``level`` and ``anchor``, through score filter, top-k, NMS and
the limit of detections per image.
"""

from __future__ import annotations

import sys
from types import ModuleType

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmengine.structures import InstanceData
from torch import Tensor

FILTER = 'filter_scores_and_topk'  # mmdet's function that every supported head calls once per level and image


class ProvenanceError(ValueError):
    """The head does not select its detections in a way that can be followed."""


class ProvenanceRecorder:
    """Context manager that makes a one-stage head add ``level`` and ``anchor`` to its results.

    ``level`` is the position in the pyramid that the head reads; ``anchor`` is the position within the level in mmdet's
    order: row by row, then column by column, then anchor by anchor of one location.

    Works for every head that selects with mmdet's own score filter, level by level, and ends in mmdet's own
    ``_bbox_post_process``: RetinaNet, FCOS, ATSS, GFL and their relatives.

    Args:
        head: the detector's one-stage head (``bbox_head``).

    Attributes:
        map_sizes: (H, W) of each level of the last batch.
        outputs: what the head's forward returned for the last batch.

    Raises:
        ProvenanceError: the head selects in another way.
    """

    def __init__(self, head: BaseDenseHead) -> None:
        reason = cannot_follow(head)
        if reason:
            raise ProvenanceError(reason)
        self.head = head
        self.map_sizes: list[tuple[int, int]] = []
        self.outputs: tuple = ()
        self._module = selecting_module(head)
        self._kept: list[Tensor] = []

    def __enter__(self) -> ProvenanceRecorder:
        self._filter = getattr(self._module, FILTER)
        setattr(self._module, FILTER, self._follow_filter)
        # instance attributes hide the class's methods for as long as they are there
        self.head.predict_by_feat = self._follow_predict
        self.head._bbox_post_process = self._follow_post_process
        return self

    def __exit__(self, *exception) -> None:
        setattr(self._module, FILTER, self._filter)
        del self.head.predict_by_feat
        del self.head._bbox_post_process
        self._kept = []

    def _follow_predict(self, cls_scores: list[Tensor], *args, **kwargs) -> list[InstanceData]:
        self.map_sizes = [(scores.shape[-2], scores.shape[-1]) for scores in cls_scores]
        self.outputs = (cls_scores, *args)
        self._kept = []
        return type(self.head).predict_by_feat(self.head, cls_scores, *args, **kwargs)

    def _follow_filter(self, *args, **kwargs):
        results = self._filter(*args, **kwargs)
        self._kept.append(results[2])
        return results

    def _follow_post_process(self, results: InstanceData, *args, **kwargs) -> InstanceData:
        kept, self._kept = self._kept, []
        if len(kept) != len(self.map_sizes) or sum(len(k) for k in kept) != len(results):
            raise ProvenanceError(
                f'{type(self.head).__name__} selected {len(results)} candidates in {len(kept)} steps from '
                f'{len(self.map_sizes)} levels: expected one step per level'
            )
        device = results.scores.device
        results.level = torch.cat([torch.full_like(k, level) for level, k in enumerate(kept)]).to(device)
        results.anchor = torch.cat(kept).to(device)
        return type(self.head)._bbox_post_process(self.head, results, *args, **kwargs)


def selecting_module(head: BaseDenseHead) -> ModuleType:
    """The module whose score filter the head's class calls."""
    return sys.modules[type(head)._predict_by_feat_single.__module__]


def cannot_follow(head: BaseDenseHead | None) -> str | None:
    """Why detections of this head cannot be followed; None if they can."""
    if not isinstance(head, BaseDenseHead):
        return 'the detector has no one-stage head (two-stage detectors refine their boxes a second time)'
    if not hasattr(selecting_module(head), FILTER):
        return f"{type(head).__name__} does not use mmdet's score filter for each level"
    return None


def priors_per_location(head: BaseDenseHead, level: int) -> int:
    """Anchors of one location; 1 for anchor-free heads."""
    counts = head.prior_generator.num_base_priors
    return int(counts[level] if isinstance(counts, (list, tuple)) else counts)


def locations(head: BaseDenseHead, level: int, anchor: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Row and column on the level's map of anchors as :class:`ProvenanceRecorder` numbers them.

    Args:
        head: the one-stage head.
        level: position in the pyramid.
        anchor: (n,) anchor numbers.
        width: W of the level's map.
    """
    cell = torch.div(anchor, priors_per_location(head, level), rounding_mode='floor')
    return torch.div(cell, width, rounding_mode='floor'), cell % width
