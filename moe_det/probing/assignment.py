"""Which anchors train the head on a ground truth: the positives of the head's own assigner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmengine.structures import InstanceData
from torch import Tensor

from .one_process import one_process
from .provenance import priors_per_location


class AssignmentError(ValueError):
    """The head assigns in a way that cannot be followed."""


def cannot_assign(head: BaseDenseHead | None) -> str | None:
    """Why the positives of this head cannot be found; None if they can."""
    if not hasattr(getattr(head, 'assigner', None), 'assign') or not hasattr(head, 'loss_by_feat'):
        return f'{type(head).__name__} has no assigner of anchors (it assigns points, or boxes of a second stage)'
    border = (getattr(head, 'train_cfg', None) or {}).get('allowed_border', -1)
    if border >= 0:
        return f'allowed_border={border} leaves anchors out before they are assigned; expected -1'
    return None


@torch.no_grad()
def positive_anchors(
    head: BaseDenseHead,
    outputs: Sequence[Sequence[Tensor]],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    metas: list,
) -> list[list[tuple[Tensor, Tensor]]]:
    """Finds the anchors that each ground truth is assigned, as a training step would.

    Args:
        head: a one-stage head with an ``assigner``.
        outputs: what the head's forward returned for the batch: class scores by level first.
        boxes: per image (n, 4) ground truth boxes x1, y1, x2, y2 in pixels of the resized image.
        labels: per image (n,) class labels.
        metas: per image its meta information.

    Returns:
        Per image, per level: the positives' anchor numbers (as in
        :class:`~moe_det.probing.provenance.ProvenanceRecorder`) and the ground truth of each, both (p,).

    Raises:
        AssignmentError: the assigner was not asked once per image about all anchors.
    """
    sizes = [scores.shape[-2] * scores.shape[-1] for scores in outputs[0]]
    lengths = [size * priors_per_location(head, level) for level, size in enumerate(sizes)]
    results = []
    assigner = head.assigner
    assign = assigner.assign

    def follow(*args, **kwargs):
        results.append(assign(*args, **kwargs))
        return results[-1]

    # every anchor of the batch counts as valid, so that the result's positions are anchor numbers
    metas = [{**meta, 'pad_shape': meta['batch_input_shape']} for meta in metas]
    truths = [InstanceData(bboxes=b, labels=c) for b, c in zip(boxes, labels, strict=True)]
    assigner.assign = follow
    try:
        with one_process():
            head.loss_by_feat(*outputs, batch_gt_instances=truths, batch_img_metas=metas)
    finally:
        del assigner.assign
    found = []
    if len(results) != len(boxes):
        raise AssignmentError(f'{type(head).__name__} assigned {len(results)} times for {len(boxes)} images')
    for result in results:
        if len(result.gt_inds) != sum(lengths):
            raise AssignmentError(
                f'{type(head).__name__} assigned {len(result.gt_inds)} of {sum(lengths)} anchors; expected all'
            )
        per_level = []
        for owner in result.gt_inds.split(lengths):
            anchors = torch.nonzero(owner > 0).flatten()
            per_level.append((anchors.cpu(), (owner[anchors] - 1).cpu()))
        found.append(per_level)
    return found
