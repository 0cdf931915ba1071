"""What a detector says of given anchors or object queries under another routing: a score for a label, and a box.

Detections of other routings are other detections. To ask every expert about the same one, its anchor or query is asked
again: the head computes scores and boxes as it always does, and only its selection is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from torch import Tensor

from ..routing.router import find_routers
from .provenance import FILTER, ProvenanceRecorder, cannot_follow, selecting_module
from .queries import QueryRecorder, cannot_follow_queries, makes_queries


@dataclass(frozen=True)
class Asked:
    """Detections of one image to ask about.

    Attributes:
        levels: (n,) level of each detection's anchor; 0 for queries.
        anchors: (n,) its number in the level, or the query.
        labels: (n,) label.
    """

    levels: Tensor
    anchors: Tensor
    labels: Tensor


def cannot_ask(model: BaseDetector) -> str | None:
    """Why single detections of a detector cannot be asked about; None if they can."""
    head = getattr(model, 'bbox_head', None)
    if not makes_queries(head):
        return cannot_follow(head)
    earlier = [name for name in find_routers(model) if not name.startswith(('decoder.', 'bbox_head.'))]
    if getattr(model, 'as_two_stage', False) and earlier:  # DINO: query q is the encoder's q-th best proposal
        return f'the experts in {earlier[0]} change the proposals that object queries start from'
    return cannot_follow_queries(head)


def followed_detections(model: BaseDetector, inputs: Tensor, sample) -> tuple[InstanceData, Asked]:
    """Detections of one image, and what to ask about them.

    Args:
        model: in eval mode, under whatever routing.
        inputs: (1, 3, H, W) normalised image.
        sample: its data sample.

    Returns:
        ``pred_instances`` in original pixels, and their anchors or queries.
    """
    head: Any = model.bbox_head
    with QueryRecorder(head) if makes_queries(head) else ProvenanceRecorder(head):
        found = _predict(model, inputs, sample)
    return found, Asked(found.level, found.anchor, found.labels)


def opinions(model: BaseDetector, inputs: Tensor, sample, asked: Asked) -> tuple[Tensor, Tensor]:
    """Scores (n,) for the labels and boxes (n, 4) in original pixels, under the routing that is in place.

    Args:
        model: in eval mode.
        inputs: (1, 3, H, W) normalised image.
        sample: its data sample.
        asked: detections of it.
    """
    head: Any = model.bbox_head
    if makes_queries(head):
        with QueryRecorder(head) as recorder:
            _predict(model, inputs, sample)
        return _of_queries(head, recorder.outputs, sample.metainfo, asked)
    with _selecting(head, asked):
        found = _predict(model, inputs, sample)
    order = torch.argsort(found.number)
    return found.scores[order], found.bboxes[order]


def _predict(model: BaseDetector, inputs: Tensor, sample) -> InstanceData:
    with torch.no_grad():
        return model.predict(inputs, [sample.clone()], rescale=True)[0].pred_instances


def _of_queries(head: Any, outputs: Sequence[Tensor], meta: dict, asked: Asked) -> tuple[Tensor, Tensor]:
    logits, boxes = outputs[0][-1, 0], outputs[1][-1, 0]
    probs = logits.sigmoid() if head.loss_cls.use_sigmoid else logits.softmax(dim=-1)
    height, width = meta['img_shape'][:2]
    corners = bbox_cxcywh_to_xyxy(boxes[asked.anchors]) * boxes.new_tensor([width, height] * 2)
    corners = torch.minimum(corners.clamp_min(0), corners.new_tensor([width, height] * 2))
    return probs[asked.anchors, asked.labels], corners / corners.new_tensor(meta['scale_factor']).repeat(2)


@contextmanager
def _selecting(head: Any, asked: Asked) -> Iterator[None]:
    """Lets a one-stage head select these anchors and labels, all of them, whatever their scores are."""
    module = selecting_module(head)
    original = getattr(module, FILTER)
    numbers: list[Tensor] = []

    def select(scores: Tensor, score_thr: float, topk: int, results: Any = None):
        number = torch.nonzero(asked.levels == len(numbers)).flatten()
        numbers.append(number)
        kept, labels = asked.anchors[number], asked.labels[number]
        filtered = results
        if isinstance(results, dict):
            filtered = {key: value[kept] for key, value in results.items()}
        elif isinstance(results, list):
            filtered = [value[kept] for value in results]
        elif results is not None:
            filtered = results[kept]
        return scores[kept, labels], labels, kept, filtered

    def finish(results: InstanceData, cfg: Any, rescale: bool = False, with_nms: bool = True, img_meta: Any = None):
        results.number = torch.cat(numbers)
        whole = {**cfg, 'min_bbox_size': -1}
        return type(head)._bbox_post_process(head, results, type(cfg)(whole), rescale, False, img_meta)

    setattr(module, FILTER, select)
    head._bbox_post_process = finish  # an instance attribute hides the class's method
    try:
        yield
    finally:
        setattr(module, FILTER, original)
        del head._bbox_post_process
