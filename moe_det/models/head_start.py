"""How a RetinaNet head with experts starts: from scratch, or from the checkpoint of a plain head."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from mmengine.model import bias_init_with_prob, normal_init
from torch import Tensor, nn

from ..layers.settings import MoESettings
from ..routing.experts import ExpertGroup, copy_dense_to_experts
from .dense_names import shard_of

CLASS_PRIOR = 0.01  # RetinaNet, arXiv 1708.02002, section 4.1


def without_predictor_overrides(init_cfg: dict | list | None) -> list[dict]:
    """RetinaHead's init_cfg without the parts that name a predictor, which experts may have replaced.

    :func:`start_predictor` does what these parts usually do, wherever the predictors are.
    """
    init_cfg = init_cfg or {'type': 'Normal', 'layer': 'Conv2d', 'std': 0.01}
    cleaned = []
    for part in [init_cfg] if isinstance(init_cfg, dict) else init_cfg:
        overrides = part.get('override', [])
        overrides = [overrides] if isinstance(overrides, dict) else overrides
        kept = [override for override in overrides if override.get('name') not in ('retina_cls', 'retina_reg')]
        rest = {key: value for key, value in part.items() if key != 'override'}
        cleaned.append({**rest, 'override': kept} if kept else rest)
    return cleaned


def start_predictor(predictor: nn.Conv2d, branch: str, shards: int = 1) -> None:
    """Draws a predictor's weights with standard deviation 0.01; a class predictor's bias is the focal prior.

    Args:
        predictor: dense or an expert's.
        branch: ``'cls'`` or ``'reg'``.
        shards: number of predictors whose outputs, and biases, add up.
    """
    bias = bias_init_with_prob(CLASS_PRIOR) if branch == 'cls' else 0.0
    normal_init(predictor, std=0.01, bias=bias / shards)


def start_experts(group: ExpertGroup, branch: str) -> None:
    """Starts the predictors of a branch's experts; a shared expert's at zero, unless it is a slice of the branch."""
    slices = [*group.experts, *([group.shared] if group.slices > 1 and group.shared is not None else [])]
    for expert in slices:
        if getattr(expert, 'predictor', None) is not None:
            start_predictor(expert.predictor, branch, group.slices)
    if group.slices == 1 and group.shared is not None and getattr(group.shared, 'predictor', None) is not None:
        nn.init.zeros_(group.shared.predictor.weight)
        nn.init.zeros_(group.shared.predictor.bias)
    group.start_common()


def fill_from_dense(
    state_dict: dict[str, Tensor],
    dense: dict[str, str],
    group: ExpertGroup,
    prefix: str,
    settings: MoESettings,
    label: str,
) -> None:
    """Rewrites a plain head's state dict in place so that a branch's experts start from what they replace.

    Args:
        state_dict: of the plain head.
        dense: key -> name inside an expert, see :func:`~moe_det.models.dense_names.replaced_keys`.
        group: the experts.
        prefix: of the experts in the state dict.
        settings: how copies are told apart.
        label: of the branch, for the log.
    """
    slots, copies, slices = group.slots, group.copies, group.slices

    def part(name: str, tensor: Tensor, expert: int) -> Tensor:
        return shard_of(name, tensor, expert // copies, slices)

    if slices > slots:  # the last slice is the shared expert
        own = group.shared.state_dict()
        for key, name in dense.items():
            of_shared = shard_of(name, state_dict[key], slots, slices)
            if name in own and own[name].shape == of_shared.shape:
                state_dict[f'{prefix.removesuffix("experts.")}shared.{name}'] = of_shared.clone()
    problems = copy_dense_to_experts(
        state_dict, dense, group, prefix, settings.copy_noise, settings.copy_redraw, part if slices > 1 else None
    )
    words = f'{len(group)} experts' if slots == 1 else f'{slots} shards of {copies} copies'
    words += ' and a shared one' if slices > slots else ''
    redrawn = f' and {settings.copy_redraw:.0%} of the channels drawn anew' if settings.copy_redraw else ''
    note = f'; not copied: {problems[0]}' + (', ...' if len(problems) > 1 else '') if problems else ''
    print_log(
        f'{label}: {len(dense) - len(problems)} of {len(dense)} dense tensors copied into {words} with relative noise '
        f'{settings.copy_noise:g}{redrawn}{note}',
        logger='current',
        level=logging.WARNING if problems else logging.INFO,
    )
