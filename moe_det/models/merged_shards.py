"""One copy of every shard, run as the dense block that the shards are slices of.

Shape letters: R rows, G shards, C channels of the whole block, C' outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

LARGE = 2**18  # weights; joining fewer is quicker than to start another convolution


def merges(norm: nn.Module | None) -> bool:
    """Whether shards with this norm give the same when they run as one block.

    Not where rows share statistics: copies then see the rows of other combinations too, and keep running statistics.
    """
    if isinstance(norm, _BatchNorm):
        return not norm.training and norm.running_mean is not None
    return not (isinstance(norm, _InstanceNorm) and norm.track_running_stats)


class MergedShards:
    """The weights of one copy of every shard, put together: one convolution, norm, activation and predictor.

    It costs what the dense block costs. Rows take the copies with weight 1; the gradient is that of the sum over the
    shards of w_s (P_s h_s + b_s), with the weight's logarithm as a further input.

    Args:
        copies: G :class:`~moe_det.models.shards.ShardExpert`, one of each shard, in their order.
        weights: the parameters of each by name, see ``ExpertGroup.weights_of``.
    """

    def __init__(self, copies: Sequence[Any], weights: Sequence[Mapping[str, Tensor]]) -> None:
        first = copies[0]
        self._block, self._predictor = first.conv, first.predictor
        self._norms = [copy.conv.norm for copy in copies]
        self._weights = weights
        norm = f'conv.{first.conv.norm_name}'
        parts = [self._parts(f'{norm}.{name}') for name in ('weight', 'bias')]
        self._norm_weight, self._norm_bias = (_joined(of_norm) if of_norm else None for of_norm in parts)

    def _parts(self, name: str) -> list[Tensor]:
        """The shards' slices of one tensor; empty where they have none."""
        return [of_copy[name] for of_copy in self._weights if name in of_copy]

    def __call__(self, rows: Tensor, log_weights: Tensor | None = None) -> Tensor:
        """Runs the block.

        Args:
            rows: (R, C, H, W).
            log_weights: (R, G), all 0; read for their gradient alone.

        Returns:
            (R, C', H, W).
        """
        x = _convolve(self._block.conv, rows, self._parts('conv.conv.weight'), self._parts('conv.conv.bias'))
        if self._norms[0] is not None:
            x = self._normalised(x)
        x = self._block.activate(x)
        weights, biases = self._parts('predictor.weight'), self._parts('predictor.bias')
        return _convolve(self._predictor, x, weights, biases, sums=True, log_weights=log_weights)

    def _normalised(self, x: Tensor) -> Tensor:
        norm = self._norms[0]
        if isinstance(norm, nn.GroupNorm):
            groups = norm.num_groups * len(self._norms)
            return F.group_norm(x, groups, self._norm_weight, self._norm_bias, norm.eps)
        if isinstance(norm, _InstanceNorm):
            return F.instance_norm(x, weight=self._norm_weight, bias=self._norm_bias, eps=norm.eps)
        mean, variance = (
            torch.cat([getattr(of_copy, name) for of_copy in self._norms]) for name in ('running_mean', 'running_var')
        )
        return F.batch_norm(x, mean, variance, self._norm_weight, self._norm_bias, False, 0.0, norm.eps)


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The shards' slices side by side; at least one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def _convolve(
    conv: nn.Conv2d,
    rows: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    sums: bool = False,
    log_weights: Tensor | None = None,
) -> Tensor:
    """One convolution made of the shards' convolutions.

    Args:
        conv: any of them, for its geometry.
        rows: (R, C, H, W).
        weights: of the shards.
        biases: of the shards; empty for none.
        sums: whether the shards' outputs add up, each from its own input channels; else they lie side by side.
        log_weights: (R, G) logarithms of the shards' weights, for their gradient; with ``sums`` alone.
    """
    if torch.is_grad_enabled():
        return _MergedConvolution.apply(rows, log_weights, conv, sums, *weights, *biases)
    return _run(conv, rows, weights, biases, sums)


def _apart(rows: Tensor, weights: Sequence[Tensor], sums: bool) -> bool:
    """Whether the shards' convolutions run one by one, because to join their weights would cost more.

    On a CPU joining them is a pass over new memory, and where the maps are small the weights are far larger. On a GPU
    it costs less than to launch another convolution.
    """
    if len(weights) == 1 or rows.device.type != 'cpu':
        return False
    channels = len(weights[0]) * (1 if sums else len(weights))
    maps = rows.numel() + rows.numel() // rows.shape[1] * channels
    return sum(weight.numel() for weight in weights) > max(maps, LARGE)


def _run(conv: nn.Conv2d, rows: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], sums: bool) -> Tensor:
    """The output of :func:`_convolve`."""
    if not _apart(rows, weights, sums):
        bias = None
        if biases:
            bias = functools.reduce(torch.add, biases) if sums else _joined(biases)
        return conv._conv_forward(rows, _joined(weights, dim=1 if sums else 0), bias)
    of_each: Sequence[Tensor | None] = biases or [None] * len(weights)
    parts = rows.chunk(len(weights), dim=1) if sums else [rows] * len(weights)
    outputs = [
        conv._conv_forward(part, weight, bias) for part, weight, bias in zip(parts, weights, of_each, strict=True)
    ]
    return functools.reduce(Tensor.add_, outputs) if sums else torch.cat(outputs, dim=1)


def _gradients(
    conv: nn.Conv2d, gradient: Tensor, rows: Tensor, weights: Sequence[Tensor], sums: bool, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    """The gradients of :func:`_run` for the rows and for each weight; None for what is not ``wanted``."""

    def of_one(gradient: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = rows.to(gradient.dtype), weight.to(gradient.dtype)  # as autocast did for the forward
        geometry = (conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups)
        return torch.ops.aten.convolution_backward(gradient, rows, weight, None, *geometry, [*wanted, False])[:2]

    shards = len(weights)
    if not _apart(rows, weights, sums):
        axis = 1 if sums else 0
        to_rows, to_weight = of_one(gradient, rows, _joined(weights, axis))
        return to_rows, [None] * shards if to_weight is None else to_weight.chunk(shards, dim=axis)
    of_rows = rows.chunk(shards, dim=1) if sums else [rows] * shards
    of_outputs = [gradient] * shards if sums else gradient.chunk(shards, dim=1)
    of_shards = list(map(of_one, of_outputs, of_rows, weights))
    to_parts = [to_part for to_part, _ in of_shards if to_part is not None]  # of all, or of none
    to_weights = [to_weight for _, to_weight in of_shards]
    if not to_parts:
        return None, to_weights
    return torch.cat(to_parts, dim=1) if sums else functools.reduce(Tensor.add_, to_parts), to_weights


class _MergedConvolution(torch.autograd.Function):
    """Keeps the shards' own weights for the backward pass, and not a merged copy for each combination.

    The gradient of a shard's log-weight is <g, P_s h_s + b_s>. Its first part is <P_s^T g, h_s>, and P_s^T g is the
    gradient of the shard's input: no shard's own output is needed. Its second part and the bias share the sums of g
    over the pixels.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, log_weights: Tensor | None, conv: nn.Conv2d, sums: bool, *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rows, *parameters)
        ctx.conv, ctx.sums = conv, sums
        ctx.shards = len(parameters) // (1 if conv.bias is None else 2)
        ctx.dtype = None if log_weights is None else log_weights.dtype
        return _run(conv, rows, parameters[: ctx.shards], parameters[ctx.shards :], sums)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        rows, *parameters = ctx.saved_tensors
        weights, biases = parameters[: ctx.shards], parameters[ctx.shards :]
        for_log_weights = ctx.dtype is not None and ctx.needs_input_grad[1]
        wanted = (ctx.needs_input_grad[0] or for_log_weights, any(ctx.needs_input_grad[4 : 4 + ctx.shards]))
        to_rows, to_weights = _gradients(ctx.conv, gradient, rows, weights, ctx.sums, wanted)
        to_biases: Sequence[Tensor] = ()
        if biases:
            over_pixels = gradient.sum((2, 3), dtype=ctx.dtype or biases[0].dtype)
            to_bias = over_pixels.sum(0)
            to_biases = [to_bias] * ctx.shards if ctx.sums else to_bias.chunk(ctx.shards)
        to_log_weights = None
        if for_log_weights:
            assert to_rows is not None  # wanted above
            shape = (len(rows), ctx.shards, -1)
            of_features = torch.linalg.vecdot(rows.reshape(shape).to(ctx.dtype), to_rows.reshape(shape).to(ctx.dtype))
            to_log_weights = of_features + over_pixels @ torch.stack(biases).t().to(ctx.dtype)
        return to_rows, to_log_weights, None, None, *to_weights, *to_biases
