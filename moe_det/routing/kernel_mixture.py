"""Experts whose weights are mixed, so that a row runs one module: a convolution with kernels of its own.

Shape letters: R rows, E experts, N images, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import MoEConfigError
from .dispatch import LevelPlan, touch_idle
from .experts import ExpertGroup
from .routing import Routing
from .rows import RowLayout

OUTPUTS, KERNELS = 'outputs', 'kernels'
MIXES = (OUTPUTS, KERNELS)


class KernelMixture(ExpertGroup):
    """Runs each row through one module with the weights ``sum_e w_e theta_e`` of its E experts.

    CondConv (arXiv 1904.04971, equation 1) and Dynamic Convolution (arXiv 1912.03458) do this to a convolution, SMEAR
    (arXiv 2306.03745) to all parameters of an expert, norms and biases included. A row costs one expert, however many
    are mixed, plus E multiply-adds per weight, and every expert in the mixture learns from the row. Where an expert is
    a single convolution without activation, this equals the mixture of outputs; elsewhere it is a different function.

    Arguments are those of ExpertGroup. ``mixture`` and ``dispatch`` have no meaning: there is one output, and nothing
    to sort.

    Raises:
        MoEConfigError: experts with running statistics, which are not weights and cannot be mixed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dispatch = 'all'  # nothing is sorted
        for name, module in self.experts[0].named_modules():
            if isinstance(module, _BatchNorm) or (isinstance(module, _InstanceNorm) and module.track_running_stats):
                raise MoEConfigError(
                    f'mixes={KERNELS!r}: {name or "an expert"} is a {type(module).__name__} with running statistics, '
                    "which cannot be mixed row by row; use norm_cfg=dict(type='GN', num_groups=...), or convolutions "
                    'without a norm as experts'
                )

    def forward(
        self,
        rows: Sequence[Tensor],
        routing: Routing | None,
        layout: RowLayout | None,
        plan: Sequence[LevelPlan] | None = None,
    ) -> list[Tensor]:
        """As ExpertGroup does; ``plan`` is not needed."""
        if routing is None:
            return super().forward(rows, routing, layout, plan)
        assert layout is not None  # comes with a decision
        weights = routing.over_experts(routing.weights, 0.0)
        counts = [len(x) for x in rows]
        if layout.unit == 'image':  # a row is an image, on all levels
            merged = [self._merged(weights)] * len(rows)
        else:
            merged = [self._merged(of_level) for of_level in weights.split(counts)]
        outputs = [self._run(x, of_level) for x, of_level in zip(rows, merged, strict=True)]
        if self.training and not any(counts):
            outputs[-1] = touch_idle(outputs[-1], [*self.experts, *(self.common or ())])
        return self.with_shared(outputs, rows)

    def _merged(self, weights: Tensor) -> list[dict[str, Tensor]]:
        """For each of R rows the weights of its module by name, in the experts' precision; (R, E) of the mixture."""
        of_experts = [self.weights_of(expert) for expert in range(len(self))]
        merged = {name: mix_weights(weights, [one[name] for one in of_experts]).unbind() for name in of_experts[0]}
        return [{name: of_rows[row] for name, of_rows in merged.items()} for row in range(len(weights))]

    def _run(self, rows: Tensor, merged: list[dict[str, Tensor]]) -> Tensor:
        """One level, (R_l, C, H, W) -> (R_l, C', H', W')."""
        module: nn.Module = self.experts[0]  # for its structure
        if not len(rows):
            return module(rows)
        call = _call_while_tracing if torch.jit.is_tracing() else functional_call
        parts = [call(module, of_row, (row,)) for of_row, row in zip(merged, rows.split(1), strict=True)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _call_while_tracing(module: nn.Module, weights: dict[str, Tensor], arguments: tuple[Tensor, ...]) -> Tensor:
    """As functional_call, which torch.jit.trace and so the export to ONNX refuse."""
    owners = [(module.get_submodule(name.rpartition('.')[0]), name.rpartition('.')[2]) for name in weights]
    kept = [owner.get_parameter(name) for owner, name in owners]
    try:
        for (owner, name), value, parameter in zip(owners, weights.values(), kept, strict=True):
            owner._parameters.pop(name)
            object.__setattr__(owner, name, value.reshape(parameter.shape))  # ONNX wants kernels of known shape
        return module(*arguments)
    finally:
        for (owner, name), parameter in zip(owners, kept, strict=True):
            vars(owner).pop(name, None)
            owner._parameters[name] = parameter


def mix_weights(weights: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """``sum_e w_e theta_e`` of one parameter, for every row.

    Computed in the experts' precision, also under autocast, in which experts that differ by little would be the same.

    Args:
        weights: (R, E) of the mixture.
        experts: E tensors (...).

    Returns:
        (R, ...).
    """
    with torch.autocast(weights.device.type, enabled=False):
        weights = weights.to(experts[0].dtype)
        if torch.jit.is_tracing():
            return torch.tensordot(weights, torch.stack(list(experts)), dims=1)
        return _MixWeights.apply(weights, *experts)


class _MixWeights(torch.autograd.Function):
    """The mixture without a second copy of all experts' weights, forward or backward."""

    @staticmethod
    def forward(weights: Tensor, *experts: Tensor) -> Tensor:
        mixed = weights.new_zeros(len(weights), experts[0].numel())
        for column, expert in zip(weights.unbind(1), experts, strict=True):
            torch.addmm(mixed, column[:, None], expert.reshape(1, -1), out=mixed)
        return mixed.reshape(-1, *experts[0].shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *experts = ctx.saved_tensors
        gradient = gradient.reshape(len(weights), -1)
        of_weights = None
        if ctx.needs_input_grad[0]:
            of_weights = torch.stack([gradient @ expert.reshape(-1) for expert in experts], dim=1)
        of_experts = [
            (column @ gradient).reshape(expert.shape) if needed else None
            for column, expert, needed in zip(weights.unbind(1), experts, ctx.needs_input_grad[1:], strict=True)
        ]
        return of_weights, *of_experts
