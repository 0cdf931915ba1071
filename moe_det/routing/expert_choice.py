"""Experts that choose rows, instead of rows that choose experts.

Shape letters: R rows, E experts, N images, P rows of an image at a level, K experts that a row runs at most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import RowLayout


class ExpertChoice:
    """Of the rows of one image at one level, every expert chooses those with the largest gate values.

    The gate value is the softmax of the expert's logits over these rows, and multiplies the expert's output (pMoE,
    arXiv 2306.04073, with patches as rows). Every expert gets equally many rows, so none is idle and nothing is left to
    balance; images do not influence each other. A row may be chosen by several experts or by none. The softmax is over
    all rows of the image at the level, as in the paper's code. Our own choices: each level of a pyramid is a choice of
    its own, a level with fewer rows gives all of them to every expert, and a row that more than K experts chose keeps
    the K with the largest values (with K = E, as in the paper, it keeps all).

    Args:
        rows_per_expert: l; at most so many rows of an image at a level.
        layout: where the rows lie.
    """

    def __init__(self, rows_per_expert: int, layout: RowLayout) -> None:
        self.rows_per_expert = rows_per_expert
        self.layout = layout

    def __call__(
        self,
        logits: Tensor,
        allowed: Tensor,
        top_k: int,
        sums_to_one: bool = False,
        slots: int = 1,
        straight_through: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """As :func:`~moe_det.routing.selection.select`; a row that no expert chose has K times no expert."""
        parts, first = [], 0
        for images, rows in self.layout.blocks():
            of_level = slice(first, first + images * rows)
            parts.append(self._of_level(logits[of_level], allowed[of_level], images, rows))
            first += images * rows
        log_weights, indices = torch.sort(torch.cat(parts), dim=1, descending=True, stable=True)
        log_weights, indices = log_weights[:, :top_k], indices[:, :top_k]
        return indices.masked_fill(torch.isneginf(log_weights), logits.shape[1]), log_weights

    def _of_level(self, logits: Tensor, allowed: Tensor, images: int, rows: int) -> Tensor:
        """(N * P, E) log-weights, -inf where the expert did not choose the row."""
        shape = (images, rows, logits.shape[1])
        order = torch.sort(allowed.reshape(shape), dim=1, descending=True, stable=True).indices
        chosen = torch.zeros(shape, dtype=torch.bool, device=logits.device)
        chosen = chosen.scatter(1, order[:, : self.rows_per_expert], True)
        chosen &= ~torch.isneginf(allowed.reshape(shape))
        gate_values = torch.log_softmax(logits.reshape(shape), dim=1)
        return torch.where(chosen, gate_values, float('-inf')).flatten(0, 1)
