"""A group of experts that share a place in the network."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .dispatch import LevelPlan, Mixture, run_dense, run_sorted, touch_idle
from .mixtures import mix_linear
from .routing import Routing
from .rows import RowLayout

DISPATCH_MODES = ('sorted', 'dense')


class ExpertGroup(nn.Module):
    """E experts of one place, run on the rows that a routing gives them.

    Args:
        experts: E modules (R, C, H, W) -> (R, C', H', W') of the same shapes.
        shared: an expert that runs on every row and whose output is added (DeepSeekMoE, arXiv 2401.06066).
        mixture: how outputs become one, see :mod:`moe_det.routing.mixtures`.
        dispatch: ``'sorted'`` (cost of K experts) or ``'dense'`` (all experts, for export and compilation).
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        shared: nn.Module | None = None,
        mixture: Mixture = mix_linear,
        dispatch: str = 'sorted',
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.shared = shared
        self.mixture = mixture
        self.dispatch = dispatch

    def __len__(self) -> int:
        return len(self.experts)

    def extra_repr(self) -> str:
        return f'mixture={self.mixture.__name__}, dispatch={self.dispatch!r}'

    def forward(
        self,
        rows: Sequence[Tensor],
        routing: Routing | None,
        layout: RowLayout | None,
        plan: Sequence[LevelPlan] | None = None,
    ) -> list[Tensor]:
        """Runs the experts on the rows of each level.

        Args:
            rows: L tensors (R_l, C, h_l, w_l).
            routing: the decision; None with a single expert, which then is a plain module.
            layout: where the rows lie; None with a single expert.
            plan: per level, from :func:`~moe_det.routing.dispatch.plan_dispatch`; not needed in dense mode.

        Returns:
            L tensors (R_l, C', h'_l, w'_l).
        """
        if routing is None:
            outputs = [self.experts[0](x) for x in rows]
        elif self.dispatch == 'dense':
            outputs = self._run_dense(rows, routing, layout)
        else:
            outputs = self._run_sorted(rows, routing, layout, plan)
        if self.shared is not None:
            outputs = [y + self.shared(x) for y, x in zip(outputs, rows, strict=True)]
        return outputs

    def _run_sorted(
        self, rows: Sequence[Tensor], routing: Routing, layout: RowLayout, plan: Sequence[LevelPlan]
    ) -> list[Tensor]:
        plans = [plan[0]] * len(rows) if layout.unit == 'image' else plan
        outputs = [
            run_sorted(x, routing, level, self.experts, self.mixture) for x, level in zip(rows, plans, strict=True)
        ]
        if self.training:
            used = {expert for level in plans for expert in level.active}
            idle = [expert for i, expert in enumerate(self.experts) if i not in used]
            outputs[-1] = touch_idle(outputs[-1], idle)
        return outputs

    def _run_dense(self, rows: Sequence[Tensor], routing: Routing, layout: RowLayout) -> list[Tensor]:
        first, outputs = 0, []
        for x in rows:
            outputs.append(run_dense(x, routing, first, self.experts, self.mixture))
            if layout.unit != 'image':
                first += x.shape[0]
        return outputs

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        pattern = re.compile(re.escape(prefix) + r'experts\.(\d+)\.')
        stored = {int(match[1]) for key in state_dict if (match := pattern.match(key))}
        if stored and len(stored) != len(self.experts):
            raise CheckpointError(
                f'the checkpoint has num_experts={len(stored)} at {prefix.rstrip(".")}, the config '
                f'num_experts={len(self.experts)}: change the config to match'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def copy_dense_to_experts(
    state_dict: dict[str, Tensor], dense: dict[str, str], experts: ExpertGroup, prefix: str, noise: float
) -> list[str]:
    """Rewrites a state dict in place so that every expert starts from the dense branch it replaces.

    Each expert's floating-point parameters get independent noise of ``noise`` times the parameter's own standard
    deviation, because identical experts would stay identical under equal routing. Buffers are copied as they are.

    Args:
        state_dict: holds the dense tensors; they are replaced by one set per expert.
        dense: dense key -> name of the parameter inside an expert.
        experts: the group to fill.
        prefix: prefix of the group in the state dict, ending in ``experts.``.
        noise: relative standard deviation of the noise, >= 0.

    Returns:
        Sentences about tensors that could not be copied; the experts keep their own initial values there.
    """
    parameters = dict(experts.experts[0].named_parameters())
    own = dict(experts.experts[0].state_dict())
    problems = []
    for key, name in dense.items():
        value = state_dict.pop(key)
        if name not in own:
            problems.append(f'{key}: an expert has no {name}')
            continue
        if own[name].shape != value.shape:
            problems.append(f'{key}: shape {tuple(value.shape)}, an expert has {tuple(own[name].shape)}')
            continue
        deviation = value.float().std().item() if name in parameters and value.numel() > 1 else 0.0
        for expert in range(len(experts)):
            copy = value.clone()
            if noise and deviation:
                copy += noise * deviation * torch.randn_like(copy)
            state_dict[f'{prefix}{expert}.{name}'] = copy
    return problems
