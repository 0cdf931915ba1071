"""Utilisation of experts, even where they lie in slots: shards, of each of which every row runs one copy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from ..routing.metrics import LIVING_SHARE, Utilisation, utilisation
from ..routing.routing import Usage

FEWEST_ROWS = 20  # fewer may fall on the same experts by chance (two experts, top-1, fair: 2 in a million)


def usage_in_slots(usage: Usage, slots: int = 1, living_share: float = LIVING_SHARE) -> Utilisation:
    """Utilisation in which an expert lives by its part of its slot's weights, and entropies are means over the slots.

    Args:
        usage: sums over rows; probabilities of a row sum to 1 over the experts of all slots.
        slots: G.
        living_share: an expert is living if it holds more than this share of the weights of its slot.

    Raises:
        ValueError: there were no rows.
    """
    used = utilisation(usage)
    return dataclasses.replace(
        used,
        living=sum(living_by_slot(used, slots, living_share)),
        row_entropy=used.row_entropy - math.log2(slots),
        batch_entropy=used.batch_entropy - math.log2(slots),
    )


def living_by_slot(used: Utilisation, slots: int, living_share: float = LIVING_SHARE) -> list[int]:
    """Experts of each slot that hold more than a part of the slot's weights."""
    copies = len(used.importance_share) // slots
    lives = [share * slots > living_share for share in used.importance_share]
    return [sum(lives[slot * copies : (slot + 1) * copies]) for slot in range(slots)]


def fewest_living(num_experts: int, top_k: int, slots: int = 1) -> int:
    """Experts of each slot that live unless it has collapsed: more than a row uses, or two where a row uses all."""
    copies, chosen = num_experts // slots, top_k // slots
    return chosen + 1 if chosen < copies else min(copies, 2)


def usage_of_rows(weights: np.ndarray, probs: np.ndarray, slots: int = 1) -> dict:
    """Load, importance, living experts and entropies over routing rows.

    Args:
        weights: (R, E) mixture weights.
        probs: (R, E) gate probabilities.
        slots: G.

    Returns:
        Fields of :class:`~moe_det.routing.metrics.Utilisation`.
    """
    mixed, gate = (torch.as_tensor(values, dtype=torch.float64) for values in (weights, probs))
    usage = Usage(
        importance=mixed.sum(0)[None],
        load=(mixed > 0).sum(0)[None].double(),
        probs=gate.sum(0)[None],
        entropy=torch.special.entr(gate).sum()[None],
        rows=torch.tensor([float(len(mixed))]),
    )
    used = usage_in_slots(usage, slots).to_dict()
    return {name: list(v) if isinstance(v, tuple) else v for name, v in used.items()}
