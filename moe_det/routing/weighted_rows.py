"""The weighted sum of what a row's experts computed, read from where their outputs lie one after the other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def sums_rows(outputs: Tensor) -> bool:
    """Whether :class:`WeightedRows` takes such outputs; measured on CPUs, whose kernel knows these types."""
    return outputs.dim() == 2 and outputs.device.type == 'cpu' and outputs.dtype in (torch.float32, torch.float64)


class WeightedRows(torch.autograd.Function):
    """y_r = sum_k w_rk z_places(r, k): back into the order of the rows, and mixed, in one pass.

    Of many tokens every pass counts: their outputs are larger than the caches, and each new tensor of that size costs
    as much to come by as a pass over it. The gradient takes two.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, weights: Tensor, places: Tensor, order: Tensor, rows: Tensor) -> Tensor:
        """Sums.

        Args:
            ctx: keeps what the gradient needs.
            outputs: z, (R * K, C), sorted by expert.
            weights: w, (R, K).
            places: (R * K,) where in z the output of each of a row's choices is.
            order: (R * K,) the inverse of ``places``.
            rows: (R * K,) row of each output.

        Returns:
            (R, C).
        """
        ctx.save_for_backward(outputs, weights, places, order, rows)
        return F.embedding_bag(places.view(weights.shape), outputs, mode='sum', per_sample_weights=weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        outputs, weights, places, order, rows = ctx.saved_tensors
        gathered = gradient.index_select(0, rows)
        to_weights = torch.linalg.vecdot(gathered, outputs).index_select(0, places).view(weights.shape)
        to_outputs = gathered.mul_(weights.flatten().index_select(0, order)[:, None])
        return to_outputs, to_weights, None, None, None
