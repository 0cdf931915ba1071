"""Entmax-1.5: weights that sum to 1 as those of a softmax do, many of them exactly 0."""

from __future__ import annotations

import torch
from torch import Tensor


def entmax15(logits: Tensor) -> Tensor:
    """p_i = max(z_i / 2 - tau, 0)^2 with the threshold tau at which the weights sum to 1.

    Source: Peters et al., "Sparse sequence-to-sequence models" (arXiv 1905.05702), alpha = 1.5, by its exact threshold
    from sorted logits. With u = z / 2 and the k largest u, of mean m and sum of squared deviations s, that threshold
    is m - sqrt((1 - s) / k); k is the largest number whose smallest u is not below it.

    Args:
        logits: (..., E) with E > 0; -inf for a weight of 0, as long as one of a row is finite.

    Returns:
        (..., E) in the dtype of the logits.
    """
    largest = logits.amax(-1, keepdim=True).detach()
    # weights are 0 from 2 below the largest logit on: the clamp changes none, and takes care of -inf
    halves = (logits - largest).clamp_min(-2) / 2
    with torch.no_grad():
        ordered = torch.sort(halves, dim=-1, descending=True).values
        count = torch.arange(1, halves.shape[-1] + 1, device=halves.device, dtype=halves.dtype)
        mean = ordered.cumsum(-1) / count
        deviations = ordered.square().cumsum(-1) - count * mean.square()
        thresholds = mean - ((1 - deviations) / count).clamp_min(0).sqrt()
        support = (thresholds <= ordered).sum(-1, keepdim=True)
        threshold = thresholds.gather(-1, support - 1)
        slope = (halves - threshold).clamp_min(0)
        slope = slope / slope.sum(-1, keepdim=True)
    # the threshold moves with the logits by these shares: its value stays, its gradient comes
    moved = (slope * halves).sum(-1, keepdim=True)
    return (halves - (threshold + moved - moved.detach())).clamp_min(0).square()


def log_entmax15(logits: Tensor) -> Tensor:
    """Logarithm of :func:`entmax15`, -inf for weights of 0, whose gradient is 0."""
    weights = entmax15(logits)
    tiny = torch.finfo(weights.dtype).tiny
    return torch.where(weights >= tiny, weights.clamp_min(tiny).log(), float('-inf'))
