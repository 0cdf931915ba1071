"""What the head's own loss says of single images under a routing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.dense_heads import AnchorHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmengine.structures import InstanceData
from torch import Tensor

from .one_process import one_process
from .places import Truth
from .provenance import cannot_follow
from .queries import cannot_follow_queries, cannot_match_queries, makes_queries, query_losses

AUXILIARY = 'loss_moe_'  # losses of constraints, which are about the routing and not about the detections


@torch.no_grad()
def image_losses(
    head: BaseDenseHead, outputs: Sequence[Any], truths: Sequence[Truth], metas: Sequence[dict]
) -> np.ndarray:
    """The detection loss of each image of a batch, as if it were trained on alone.

    Args:
        head: a one-stage head in eval mode, or one of DETR's family.
        outputs: what the head's forward returned for the batch, such as class scores and box deltas by level, or by
            decoder layer.
        truths: ground truths of each image.
        metas: meta information of each image.

    Returns:
        (N,) sum of the head's losses, without those of routing constraints.
    """
    found = np.empty(len(truths))
    for image, (truth, meta) in enumerate(zip(truths, metas, strict=True)):
        device = outputs[0][0].device
        labels = torch.as_tensor(truth.labels, device=device)
        objects = InstanceData(bboxes=truth.resized(meta).to(device), labels=labels)
        if makes_queries(head):
            losses = query_losses(head, outputs, image, objects, meta)
        else:
            own = [[level[image : image + 1] for level in of_kind] for of_kind in outputs]
            with one_process():
                losses = head.loss_by_feat(*own, batch_gt_instances=[objects], batch_img_metas=[meta])
        found[image] = sum(
            float(sum(value.sum() for value in ([loss] if isinstance(loss, Tensor) else loss)))
            for name, loss in losses.items()
            if 'loss' in name and not name.startswith(AUXILIARY)
        )
    return found


def cannot_compute_losses(head: BaseDenseHead | None) -> str | None:
    """Why the losses of this head cannot be computed image by image; None if they can."""
    if makes_queries(head):
        return cannot_follow_queries(head) or cannot_match_queries(head)
    reason = cannot_follow(head)
    if reason:
        return reason
    if not hasattr(head, 'loss_by_feat') or (isinstance(head, AnchorHead) and not hasattr(head, 'assigner')):
        return f'{type(head).__name__} has no loss of its own here (no train_cfg?)'
    if getattr(head, 'norm_on_bbox', False):
        return f'{type(head).__name__} with norm_on_bbox predicts other numbers in evaluation than its loss expects'
    return None
