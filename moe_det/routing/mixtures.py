"""How the outputs of a row's experts become one output.

Both mixtures take outputs (R, K, ...) and log-weights (R, K), -inf where no expert was chosen, and return (R, ...).
"""

from __future__ import annotations

import math

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

    arXiv 2204.10598 mixes class scores after the sigmoid. Detection heads must return logits, so the mixture is
    computed in the log domain: log p = logsumexp_k(log w_k + logsigmoid(z_k)), the same for 1 - p with -z_k. Weights
    that sum to less than 1 leave the rest to "no object".

    Args:
        outputs: (R, K, ...) class logits.
        log_weights: (R, K).
        sums_to_one: whether a row's weights sum to 1.

    Returns:
        (R, ...) logits in at least fp32.
    """
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    with torch.autocast(outputs.device.type, enabled=False):
        outputs = outputs.to(dtype)
        trailing = [1] * (outputs.dim() - 2)
        log_weights = log_weights.to(dtype)
        shaped = log_weights.reshape(*log_weights.shape, *trailing)
        if sums_to_one and outputs.shape[1] == 1:
            # log w = 0; added, because data-parallel training needs the gate in every step's graph
            return outputs[:, 0] + shaped[:, 0]
        # a graph has one form, the log domain, whether or not gradients were on when it was made
        eager = not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        largest = 1 - torch.finfo(dtype).eps / 2  # the number below 1: keeps log(1 - w) finite
        total = None if sums_to_one else log_weights.exp().sum(1).clamp_max(largest).reshape(-1, *trailing)
        if eager and outputs.shape[1] > 1 and not torch.is_grad_enabled():
            return _mix_without_gradient(outputs, shaped.exp(), total)
        if sums_to_one:
            log_p, log_q = _log_probabilities(outputs, shaped)
            return log_p - log_q
        log_rest = torch.log1p(-total)
        if eager and outputs.shape[1] == 1:
            return _SingleLogit.apply(outputs[:, 0], shaped[:, 0], log_rest)
        log_p, log_q = _log_probabilities(outputs, shaped)
        return log_p - torch.logaddexp(log_q, log_rest)


def _mix_without_gradient(outputs: Tensor, weights: Tensor, total: Tensor | None) -> Tensor:
    """:func:`mix_probabilities` from p and 1 - p themselves, in half the time; ``weights`` sum to ``total``, or to 1.

    Logits are clamped to where both are normal numbers (fp32: 85); beyond, their sigmoid is 0 or 1 to every digit.
    Training takes the log domain: a clamped logit has no gradient.
    """
    limit = -math.log(torch.finfo(outputs.dtype).tiny) - 2
    p, q = 0.0, 0.0 if total is None else 1 - total
    for weight, output in zip(weights.unbind(1), outputs.unbind(1), strict=True):
        z = output.clamp(-limit, limit)
        p = z.sigmoid().mul_(weight).add_(p)
        q = z.neg_().sigmoid_().mul_(weight).add_(q)
    return p.div_(q).log_()


class _SingleLogit(torch.autograd.Function):
    """The mixture of one expert: with p = w / (1 + exp(-z)), log(p / (1 - p)) = log w - log(exp(-z) + 1 - w).

    A quarter of the general form's passes. The gradient by hand: with t = sigmoid(z + log(1 - w)) it is 1 - t for z, 1
    for log w and -t for log(1 - w). Of tensors of this size only the logits are kept.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, log_weight: Tensor, log_rest: Tensor) -> Tensor:
        ctx.save_for_backward(logits, log_rest)
        mixed = logits.neg()  # the only new tensor: a large one costs as much to come by as a pass over it
        torch.logaddexp(mixed, log_rest, out=mixed)
        return torch.sub(log_weight, mixed, out=mixed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, log_rest = ctx.saved_tensors
        to_rest = (logits + log_rest).sigmoid_().mul_(gradient)
        shape = log_rest.shape
        return gradient - to_rest, gradient.sum_to_size(shape), -to_rest.sum_to_size(shape)


def _log_probabilities(outputs: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log q of the weighted mean of sigmoids, (R, ...) each; ``log_weights`` is (R, K, 1, ...)."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _LogProbabilities.apply(outputs, log_weights)
    return _weighted_log_sigmoids(outputs, log_weights)


def _weighted_log_sigmoids(outputs: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    positive = log_weights + F.logsigmoid(outputs)
    negative = positive - outputs  # logsigmoid(-z) = logsigmoid(z) - z
    if outputs.shape[1] == 2:  # one pass instead of logsumexp's six
        return torch.logaddexp(*positive.unbind(1)), torch.logaddexp(*negative.unbind(1))
    return torch.logsumexp(positive, dim=1), torch.logsumexp(negative, dim=1)


class _LogProbabilities(torch.autograd.Function):
    """:func:`_weighted_log_sigmoids` with its gradient by hand.

    Class logits are the largest tensors of a head; autograd would keep seven intermediates of K times their size and
    pass over them some thirty times. Kept are the logits themselves and the two results.
    """

    @staticmethod
    def forward(ctx, outputs: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = _weighted_log_sigmoids(outputs, log_weights)
        ctx.save_for_backward(outputs, log_weights, log_p, log_q)
        return log_p, log_q

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_p: Tensor, grad_q: Tensor) -> tuple[Tensor, Tensor]:
        outputs, log_weights, log_p, log_q = ctx.saved_tensors
        # a row without any expert has log p = -inf, and no share in it: exp(-inf - 0) = 0
        log_p, log_q = (x.masked_fill(x == float('-inf'), 0.0).unsqueeze(1) for x in (log_p, log_q))
        share = F.logsigmoid(outputs).add_(log_weights)
        share_q = (share - outputs).sub_(log_q).exp_().mul_(grad_q.unsqueeze(1))  # d log q / d log w_k
        share_p = share.sub_(log_p).exp_().mul_(grad_p.unsqueeze(1))
        # d log p / dz_k = share_p sigmoid(-z_k),  d log q / dz_k = -share_q sigmoid(z_k)
        to_weights = share_p + share_q
        to_outputs = share_p.addcmul_(torch.sigmoid(outputs), to_weights, value=-1.0)
        axes = list(range(2, outputs.dim()))
        return to_outputs, to_weights.sum(axes, keepdim=True) if axes else to_weights
