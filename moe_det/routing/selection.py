"""Selection: from gate logits to the chosen experts of each row and their weights.

Experts may be divided into *slots* of equal size, of which every row runs one expert each: experts 0 .. E/S - 1 are
slot 0, the next ones slot 1. Shape letters: R rows, E experts, K chosen, S slots.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .entmax import log_entmax15

SOFTMAX = 'softmax'
STRAIGHT_THROUGH = 'straight_through'
FULL_SOFTMAX = 'full_softmax'
ENTMAX = 'entmax'
WEIGHTINGS = (SOFTMAX, STRAIGHT_THROUGH, FULL_SOFTMAX, ENTMAX)
Choose = Callable[[Tensor, Tensor, int, bool, int, bool], tuple[Tensor, Tensor]]  # as select


def log_probabilities(logits: Tensor, slots: int = 1) -> Tensor:
    """(R, E) logarithm of the softmax over all experts; with several slots of that inside each slot, over S.

    Either way a row's probabilities sum to 1.
    """
    if slots == 1:
        return torch.log_softmax(logits, dim=1)
    return torch.log_softmax(logits.unflatten(1, (slots, -1)), dim=2).flatten(1) - math.log(slots)


def log_softmax(logits: Tensor) -> Tensor:
    """(R, K) log-weights of the kept logits."""
    return torch.log_softmax(logits, dim=1)


def select(
    logits: Tensor,
    allowed: Tensor,
    top_k: int,
    sums_to_one: bool,
    slots: int = 1,
    straight_through: bool = False,
    log_weights_of: Callable[[Tensor], Tensor] = log_softmax,
) -> tuple[Tensor, Tensor]:
    """Chooses the experts of each row and their weights.

    Weights are the softmax over the kept logits (arXiv 2204.10598). With a single expert that softmax is the
    constant 1 and would give the gate no gradient; ``sums_to_one=False`` then takes the softmax over all allowed
    experts (Switch Transformer, arXiv 2101.03961, eq. 2), for any K as in DeepSeekMoE (arXiv 2401.06066). Straight
    through (arXiv 1308.3432), its value is 1 and its gradient that of the probability: experts that start as copies of
    a dense branch then compute what it did.

    Args:
        logits: (R, E) gate logits; the weights come from these.
        allowed: (R, E) logits after the constraints; -inf forbids an expert, any other change moves the choice only.
            A row whose experts are all forbidden is treated as unconstrained; so is a slot.
        top_k: K; S with several slots.
        sums_to_one: softmax over the kept logits, else over all allowed ones.
        slots: S; with several, the weights are straight through.
        straight_through: weights of value 1, for K = 1.
        log_weights_of: log-weights (R, K) from the kept logits (R, K), where ``sums_to_one``; -inf for no weight.

    Returns:
        indices (R, K), best first, ties to the lowest index, E where fewer than K experts were allowed or have weight;
        with several slots in their order; log_weights (R, K), -inf where no expert was chosen.
    """
    if slots > 1 or straight_through:
        return _select_in_slots(logits, allowed, slots)
    num_experts = logits.shape[1]
    forbidden = torch.isneginf(allowed)
    none_left = forbidden.all(dim=1, keepdim=True)
    forbidden = forbidden & ~none_left
    order = torch.where(none_left, logits, allowed)
    # a stable sort, not topk: topk leaves the order of ties open
    indices = torch.sort(order, dim=1, descending=True, stable=True).indices[:, :top_k]
    missing = forbidden.gather(1, indices)
    if sums_to_one:
        kept = logits.gather(1, indices).masked_fill(missing, float('-inf'))
        log_weights = log_weights_of(kept)
        missing = missing | torch.isneginf(log_weights)
    else:
        log_probs = torch.log_softmax(logits.masked_fill(forbidden, float('-inf')), dim=1)
        log_weights = log_probs.gather(1, indices)
    return indices.masked_fill(missing, num_experts), log_weights


select_entmax = functools.partial(select, log_weights_of=log_entmax15)


def _select_in_slots(logits: Tensor, allowed: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """One expert of each slot, (R, S), and log-weights of value 0 whose gradient is that of its probability."""
    copies = logits.shape[1] // slots
    within, log_probs = select(logits.reshape(-1, copies), allowed.reshape(-1, copies), 1, False)
    first = torch.arange(0, logits.shape[1], copies, device=logits.device)
    probs = log_probs.exp().view(-1, slots)
    return within.view(-1, slots) + first, probs - probs.detach()


def check_weighting(
    num_experts: int, top_k: int, slots: int, weighting: str, rows_per_expert: int | None = None
) -> None:
    """Raises ValueError for slots or a weighting that K, or a choice by the experts, does not fit."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f'weighting={weighting!r}: expected one of {", ".join(WEIGHTINGS)}')
    if slots > 1 and (top_k != slots or num_experts % slots):
        raise ValueError(f'slots={slots}: expected top_k={slots} and a multiple of it as num_experts={num_experts}')
    if slots == 1 and weighting == STRAIGHT_THROUGH and top_k != 1:
        raise ValueError(f'weighting={weighting!r}: top_k={top_k}, expected 1')
    if rows_per_expert is not None and (slots > 1 or weighting != SOFTMAX):
        raise ValueError(
            f'rows_per_expert={rows_per_expert}: weights are then a softmax over rows; take shards and weighting out'
        )
