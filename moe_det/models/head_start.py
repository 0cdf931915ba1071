"""How a RetinaNet head with experts starts from scratch."""

from __future__ import annotations

from mmengine.model import bias_init_with_prob, normal_init
from torch import nn

from ..routing.experts import ExpertGroup

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
    added = group.shared_experts if group.slices == 1 else []
    for expert in group.every_expert:
        predictor = getattr(expert, 'predictor', None)
        if predictor is not None and expert in added:
            nn.init.zeros_(predictor.weight)
            nn.init.zeros_(predictor.bias)
        elif predictor is not None:
            start_predictor(predictor, branch, group.slices)
    group.start_common()
