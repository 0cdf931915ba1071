"""Parts whose experts start from a checkpoint of the dense part that they replace."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from mmengine.logging import print_log
from torch import Tensor

from ..routing.dense_copies import copy_dense_to_experts
from ..routing.experts import ExpertGroup
from .settings import MoESettings

ShardAxis = Callable[[str], int | Literal['sum']]


def slice_of(tensor: Tensor, axis: int | Literal['sum'], group: ExpertGroup, expert: int) -> Tensor:
    """What an expert that is a slice of the dense part has of one of its tensors.

    Args:
        tensor: of the dense part.
        axis: along which slices of it lie side by side, or ``'sum'``.
        group: the experts.
        expert: number of one of them; the shared slice's follows the last.
    """
    if axis == 'sum':
        return tensor / group.slices
    if tensor.dim() <= axis or tensor.shape[axis] % group.slices:  # cannot be cut: as it is, which may not fit
        return tensor
    return tensor.chunk(group.slices, dim=axis)[expert // group.copies]


def start_from_dense(
    state_dict: dict[str, Tensor],
    dense: dict[str, str],
    group: ExpertGroup,
    prefix: str,
    settings: MoESettings,
    label: str,
    shard_axis: ShardAxis = lambda name: 0,
) -> None:
    """Rewrites a state dict in place so that experts are copies of the dense tensors in it, and says so in the log.

    Args:
        state_dict: what is loaded.
        dense: key of a dense tensor in it -> name of the tensor inside an expert; without any, nothing happens.
        group: the experts.
        prefix: of the experts in the state dict, ending in ``experts.``.
        settings: noise and redrawn channels, which make the copies differ.
        label: what has the experts, for the log.
        shard_axis: name of a tensor -> the axis along which shards of it lie side by side, or ``'sum'``.
    """
    if not dense:
        return
    noise, redraw = settings.copy_noise, settings.copy_redraw

    def shard_of(name: str, tensor: Tensor, expert: int) -> Tensor:
        return slice_of(tensor, shard_axis(name), group, expert)

    part = shard_of if group.slices > 1 else None
    problems = copy_dense_to_experts(state_dict, dense, group, prefix, noise, redraw, part)
    words = f'{len(group)} experts' if group.slots == 1 else f'{group.slots} shards of {group.copies} copies'
    words += ' and a shared one' if group.slices > group.slots else ''
    redrawn = f' and {redraw:.0%} of the channels redrawn' if redraw else ''
    note = f'; not copied: {problems[0]}' + (', ...' if len(problems) > 1 else '') if problems else ''
    print_log(
        f'{label}: {len(dense) - len(problems)} of {len(dense)} dense tensors copied into {words} with relative noise '
        f'{noise:g}{redrawn}{note}',
        logger='current',
        level=logging.WARNING if problems else logging.INFO,
    )
