"""How the outputs of a row's experts become one output.

Both mixtures take outputs (R, K, ...) and log-weights (R, K), -inf where no expert was chosen, and return (R, ...).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def mix_linear(outputs: Tensor, log_weights: Tensor, sums_to_one: bool = True) -> Tensor:
    """Weighted sum of the outputs: y = sum_k w_k y_k (arXiv 2204.10598).

    Args:
        outputs: (R, K, ...) expert outputs.
        log_weights: (R, K).
        sums_to_one: unused; weights that sum to less scale the output down.

    Returns:
        (R, ...) in the dtype of ``outputs``.
    """
    weights = log_weights.exp().to(outputs.dtype)
    if outputs.shape[1] == 1:
        return outputs[:, 0] * weights.reshape(-1, *[1] * (outputs.dim() - 2))
    # a batched product instead of multiply-and-sum: no (R, K, ...) intermediate is kept
    mixed = torch.bmm(weights[:, None], outputs.unsqueeze(-1).flatten(2).to(weights.dtype))
    return mixed.reshape(outputs.shape[0], *outputs.shape[2:])


def mix_probabilities(outputs: Tensor, log_weights: Tensor, sums_to_one: bool = True) -> Tensor:
    """Mixes logits as probabilities and returns logits: p = sum_k w_k sigmoid(z_k), then log(p / (1 - p)).

    arXiv 2204.10598 mixes class scores after the sigmoid. Detection heads must return logits, so 1 - p is summed from
    sigmoid(-z_k) in the same way, instead of subtracted. Weights that sum to less than 1 leave the rest to "no object".
    Where a single expert has the weight 1, the result is its logit, and the gradient for log w is that of
    log(p / (1 - p)) at p = sigmoid(z), 1 + exp(z): what a gate learns from whose weights are straight through.

    Args:
        outputs: (R, K, ...) class logits.
        log_weights: (R, K).
        sums_to_one: whether a row's weights sum to 1.

    Returns:
        (R, ...) logits in at least fp32.
    """
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    with torch.autocast(outputs.device.type, enabled=False):
        outputs, log_weights = outputs.to(dtype), log_weights.to(dtype)
        trailing = [1] * (outputs.dim() - 2)
        shaped = log_weights.reshape(*log_weights.shape, *trailing)
        if sums_to_one and outputs.shape[1] == 1:
            return _whole_logit(outputs[:, 0], shaped[:, 0])
        largest = 1 - torch.finfo(dtype).eps / 2  # the number below 1: keeps log(1 - w) finite
        total = None if sums_to_one else log_weights.exp().sum(1).clamp_max(largest).reshape(-1, *trailing)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return _mix_in_log_domain(outputs, shaped, total)
        if total is None:
            return _MixedLogit.apply(outputs, shaped, None)
        if outputs.shape[1] == 1:
            return _SingleLogit.apply(outputs[:, 0], shaped[:, 0], torch.log1p(-total))
        return _MixedLogit.apply(outputs, shaped, 1 - total)


def _mix_in_log_domain(outputs: Tensor, log_weights: Tensor, total: Tensor | None) -> Tensor:
    """The definition, of plain operators: what a graph records. ``log_weights`` is (R, K, 1, ...), ``total`` their sum.

    Three times the passes of :class:`_MixedLogit`, which a compiler fuses.
    """
    positive = log_weights + F.logsigmoid(outputs)
    log_p = torch.logsumexp(positive, dim=1)
    log_q = torch.logsumexp(positive - outputs, dim=1)  # logsigmoid(-z) = logsigmoid(z) - z
    return log_p - (log_q if total is None else torch.logaddexp(log_q, torch.log1p(-total)))


def _whole_logit(logits: Tensor, log_weight: Tensor) -> Tensor:
    """The logit of one expert that has the weight of all, log w = 0; see :func:`mix_probabilities`."""
    if not log_weight.requires_grad:
        return logits + log_weight
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        slope = logits.detach().clamp_max(_largest_odds(logits.dtype)).exp()
        return logits + log_weight + (log_weight - log_weight.detach()) * slope
    return _WholeLogit.apply(logits, log_weight)


class _WholeLogit(torch.autograd.Function):
    """z + log w at log w = 0, with the gradient 1 for z and 1 + exp(z) for log w. Keeps the logits alone."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_weight: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.shape = log_weight.shape
        return logits + log_weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (logits,) = ctx.saved_tensors
        slope = logits.clamp_max(_largest_odds(logits.dtype)).exp_().add_(1)
        return gradient, slope.mul_(gradient).sum_to_size(ctx.shape)


def _largest_odds(dtype: torch.dtype) -> float:
    """The logit from which a weight of 1 and the number below it give different probabilities (fp32: 16.6)."""
    return -math.log(torch.finfo(dtype).eps / 2)


class _SingleLogit(torch.autograd.Function):
    """The mixture of one expert: with p = w / (1 + exp(-z)), log(p / (1 - p)) = log w - log(exp(-z) + 1 - w).

    Half of the general form's passes. The gradient by hand: with t = sigmoid(z + log(1 - w)) it is 1 - t for z, 1
    for log w and -t for log(1 - w). Of tensors of this size only the logits are kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_weight: Tensor, log_rest: Tensor) -> Tensor:
        ctx.save_for_backward(logits, log_rest)
        mixed = logits.neg()  # the only new tensor: a large one costs as much to come by as a pass over it
        torch.logaddexp(mixed, log_rest, out=mixed)
        return torch.sub(log_weight, mixed, out=mixed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, log_rest = ctx.saved_tensors
        to_rest = (logits + log_rest).sigmoid_().mul_(gradient)
        shape = log_rest.shape
        return gradient - to_rest, gradient.sum_to_size(shape), -to_rest.sum_to_size(shape)


class _MixedLogit(torch.autograd.Function):
    """The mixture from p = sum_k w_k sigmoid(z_k) and q = 1 - p = sum_k w_k sigmoid(-z_k) + rest themselves.

    Class logits are the largest tensors of a head, so passes over them count, and new tensors even more. Logits are
    clamped to where both sigmoids are normal numbers (fp32: 85); beyond, a sigmoid is 0 or 1 to every digit. The
    gradient by hand: w_k sigmoid(z_k) sigmoid(-z_k) (1/p + 1/q) for z_k, w_k (sigmoid(z_k)/p - sigmoid(-z_k)/q) for
    log w_k, -1/q for the rest. Kept are the logits and the result, which tells p and q.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, log_weights: Tensor, rest: Tensor | None) -> Tensor:
        limit = _limit(outputs.dtype)
        pairs = zip(log_weights.exp().unbind(1), outputs.unbind(1), strict=True)
        terms = (_weighted_sigmoids(weight, output.clamp(-limit, limit)) for weight, output in pairs)
        p, q = next(terms)
        for part_p, part_q in terms:
            p.add_(part_p)
            q.add_(part_q)
        mixed = p.div_(q if rest is None else q.add_(rest)).log_()
        ctx.save_for_backward(outputs, log_weights, mixed)
        ctx.has_rest = rest is not None
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        outputs, log_weights, mixed = ctx.saved_tensors
        limit = _limit(outputs.dtype)
        over_q = mixed.clamp(-limit, limit)  # a row without any expert has -inf
        over_p = over_q.neg().exp_().add_(1)  # 1/p
        over_q.exp_().add_(1)
        over_both = over_p + over_q
        to_outputs, to_weights = torch.empty_like(outputs), torch.empty_like(log_weights)
        for k, weight in enumerate(log_weights.exp().unbind(1)):
            # weight and gradient go to the small factors: the large ones, or sums of them, would overflow
            weighted = torch.mul(gradient, weight, out=to_outputs[:, k])
            p = outputs[:, k].clamp(-limit, limit)
            q = p.neg().sigmoid_()
            p.sigmoid_().mul_(weighted)
            to_weight = _row_products(p, over_p)
            p.mul_(q)
            to_weight = to_weight - _row_products(q.mul_(weighted), over_q)
            to_weights[:, k] = to_weight.reshape(weight.shape)
            torch.mul(p, over_both, out=to_outputs[:, k])
        to_rest = -over_q.mul_(gradient).sum_to_size(to_weights[:, 0].shape) if ctx.has_rest else None
        return to_outputs, to_weights, to_rest


def _weighted_sigmoids(weight: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """w sigmoid(z) and w sigmoid(-z); the second takes the place of the logits."""
    return logits.sigmoid().mul_(weight), logits.neg_().sigmoid_().mul_(weight)


def _limit(dtype: torch.dtype) -> float:
    """The largest |z| whose sigmoids are both normal numbers, with some room."""
    return -math.log(torch.finfo(dtype).tiny) - 2


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """(R,) inner products of two (R, ...) tensors."""
    return torch.linalg.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1))
