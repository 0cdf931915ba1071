"""Detections of DETR's family and the object query that made each; the query that is matched to each ground truth.

Queries stand instead of anchors: their number in the image is called ``anchor`` here too, and the one level that
all of them are on is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.models.dense_heads import DETRHead
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..routing.router import find_routers
from ..routing.tokens import TOKEN
from .assignment import AssignmentError
from .one_process import one_process
from .provenance import ProvenanceError

DECODER = 'decoder.'  # path of the decoder in every detector of the family


def makes_queries(head: nn.Module | None) -> bool:
    """Whether the head is one of DETR's family, whose detections come from object queries."""
    return isinstance(head, DETRHead)


def query_layers(model: nn.Module) -> list[str]:
    """MoE layers of the decoder that decide about single queries; none where detections cannot be followed to them."""
    head = getattr(model, 'bbox_head', None)
    if not makes_queries(head) or cannot_follow_queries(head):
        return []
    return [name for name, router in find_routers(model).items() if name.startswith(DECODER) and router.unit == TOKEN]


def cannot_follow_queries(head: DETRHead) -> str | None:
    """Why detections of this head cannot be followed to queries; None if they can."""
    if type(head)._predict_by_feat_single is not DETRHead._predict_by_feat_single:
        return f'{type(head).__name__} chooses its detections in a way of its own'
    return None


def cannot_match_queries(head: DETRHead) -> str | None:
    """Why ground truths cannot be matched to queries of this head; None if they can."""
    if not hasattr(getattr(head, 'assigner', None), 'assign'):
        return f'{type(head).__name__} has no matcher here (no train_cfg?)'
    return None


class QueryRecorder:
    """Context manager that makes a head of DETR's family add ``level`` (0) and ``anchor`` (the query) to its results.

    The head is asked twice: for its results, and with boxes in whose place the numbers of the queries stand. So the
    selection is the head's own.

    Args:
        head: the detector's head.

    Attributes:
        map_sizes: (number of queries, 1): the one level of the last batch.
        outputs: class scores (layers, N, Q, classes) and boxes (layers, N, Q, 4) of the last batch.

    Raises:
        ProvenanceError: the head selects in another way.
    """

    def __init__(self, head: DETRHead) -> None:
        reason = cannot_follow_queries(head)
        if reason:
            raise ProvenanceError(reason)
        self.head = head
        self.map_sizes: list[tuple[int, int]] = []
        self.outputs: tuple = ()

    def __enter__(self) -> QueryRecorder:
        # instance attributes hide the class's methods for as long as they are there
        self.head.predict_by_feat = self._follow_predict
        self.head._predict_by_feat_single = self._follow_selection
        return self

    def __exit__(self, *exception) -> None:
        del self.head.predict_by_feat
        del self.head._predict_by_feat_single

    def _follow_predict(self, cls_scores: Tensor, boxes: Tensor, *args, **kwargs) -> list[InstanceData]:
        self.map_sizes = [(cls_scores.shape[2], 1)]
        self.outputs = (cls_scores, boxes)
        return type(self.head).predict_by_feat(self.head, cls_scores, boxes, *args, **kwargs)

    def _follow_selection(self, cls_score: Tensor, boxes: Tensor, img_meta: dict, rescale: bool = True) -> InstanceData:
        select = type(self.head)._predict_by_feat_single
        results = select(self.head, cls_score, boxes, img_meta, rescale)
        count = len(cls_score)
        numbers = torch.zeros(count, 4, device=boxes.device)  # boxes without extent, query q at q + 0.5 of Q pixels
        numbers[:, 0] = (torch.arange(count, device=boxes.device) + 0.5) / count
        numbered = select(self.head, cls_score, numbers, {**img_meta, 'img_shape': (1, count)}, False)
        if not torch.equal(numbered.labels, results.labels):
            raise ProvenanceError(f'{type(self.head).__name__} selects other detections when asked again')
        results.anchor = numbered.bboxes[:, 0].long()
        results.level = torch.zeros_like(results.anchor)
        return results


@torch.no_grad()
def matched_queries(
    head: DETRHead, outputs: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor], metas: list
) -> list[list[tuple[Tensor, Tensor]]]:
    """Finds the query that each ground truth is matched to at the last decoder layer, as a training step would.

    Args:
        head: with an ``assigner``.
        outputs: of a :class:`QueryRecorder`.
        boxes: per image (n, 4) ground truth boxes x1, y1, x2, y2 in pixels of the resized image.
        labels: per image (n,) class labels.
        metas: per image its meta information.

    Returns:
        Per image, for the one level: numbers of the matched queries, and the ground truth of each, both (p,), as
        :func:`~moe_det.probing.assignment.positive_anchors` gives them.

    Raises:
        AssignmentError: the matcher was not asked once per image.
    """
    results = []
    assigner = head.assigner
    assign = assigner.assign

    def follow(*args, **kwargs):
        results.append(assign(*args, **kwargs))
        return results[-1]

    assigner.assign = follow
    try:
        for scores, predicted, of_image, classes, meta in zip(
            *(o[-1] for o in outputs), boxes, labels, metas, strict=True
        ):
            head._get_targets_single(scores, predicted, InstanceData(bboxes=of_image, labels=classes), meta)
    finally:
        del assigner.assign
    if len(results) != len(boxes):
        raise AssignmentError(f'{type(head).__name__} matched {len(results)} times for {len(boxes)} images')
    found = []
    for result in results:
        queries = torch.nonzero(result.gt_inds > 0).flatten()
        found.append([(queries.cpu(), (result.gt_inds[queries] - 1).cpu())])
    return found


def query_losses(
    head: DETRHead, outputs: Sequence[Tensor], image: int, objects: InstanceData, meta: dict
) -> dict[str, Tensor]:
    """The losses of one image at the last decoder layer, whose boxes are the detections.

    Args:
        head: with a matcher.
        outputs: of a :class:`QueryRecorder`.
        image: number in the batch.
        objects: its ground truths in pixels of the resized image.
        meta: its meta information.
    """
    own = [of_kind[-1:, image : image + 1] for of_kind in outputs]
    with one_process():
        return DETRHead.loss_by_feat(head, *own, batch_gt_instances=[objects], batch_img_metas=[meta])
