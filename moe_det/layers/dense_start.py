"""Layers whose experts start from a checkpoint of the dense part that they replace."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mmengine.logging import print_log
from torch import Tensor

from ..routing.dense_copies import copy_dense_to_experts
from ..routing.experts import ExpertGroup
from .settings import MoESettings


def start_from_dense(
    state_dict: dict[str, Tensor],
    dense: dict[str, str],
    group: ExpertGroup,
    prefix: str,
    settings: MoESettings,
    what: str,
    part: Callable[[str, Tensor, int], Tensor] | None = None,
) -> None:
    """Rewrites a state dict in place so that a layer's experts are copies of its dense tensors, and says so in the log.

    Args:
        state_dict: what is loaded.
        dense: key of a dense tensor in it -> name of the tensor inside an expert; without any, nothing happens.
        group: the experts.
        prefix: of the layer in the state dict.
        settings: of the layer, for noise and redrawn channels.
        what: the dense part in words.
        part: see :func:`~moe_det.routing.dense_copies.copy_dense_to_experts`.
    """
    if not dense:
        return
    noise, redraw = settings.copy_noise, settings.copy_redraw
    problems = copy_dense_to_experts(state_dict, dense, group, f'{prefix}expert_group.experts.', noise, redraw, part)
    words = f'{len(group)} experts' if group.slots == 1 else f'{group.slots} shards of {group.copies} copies'
    print_log(
        f'{prefix.rstrip(".")}: {len(dense) - len(problems)} of {len(dense)} tensors of the {what} copied into '
        f'{words} with relative noise {noise:g}' + (f'; not copied: {problems[0]}' if problems else ''),
        logger='current',
        level=logging.WARNING if problems else logging.INFO,
    )
