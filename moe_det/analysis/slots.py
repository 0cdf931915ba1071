"""Experts in slots: shards, of each of which every routing row runs exactly one copy.

Expert ``shard * copies + copy`` is a copy of a shard. Without shards there is one slot, which holds all experts.
Letters: n rows or entries, E experts, G slots.
"""

from __future__ import annotations

import numpy as np


def top_experts(weights: np.ndarray, slots: int = 1) -> np.ndarray:
    """(n, G) the expert of the largest weight in each slot; ties go to the lowest number.

    Args:
        weights: (n, E).
        slots: G.
    """
    copies = weights.shape[1] // slots
    chosen = weights.reshape(len(weights), slots, copies).argmax(axis=2)
    return chosen + copies * np.arange(slots)


def masses_of(chosen: np.ndarray, num_experts: int) -> np.ndarray:
    """(n, E) masses that sum to 1 in each row: 1/G for each of the (n, G) chosen experts."""
    masses = np.zeros((len(chosen), num_experts))
    np.put_along_axis(masses, chosen, 1 / chosen.shape[1], axis=1)
    return masses


def within_slots(values: np.ndarray, slots: int) -> np.ndarray:
    """(E, ...) values minus the mean over the experts of the same slot."""
    parted = np.reshape(values, (slots, -1, *np.shape(values)[1:]))
    return (parted - parted.mean(axis=1, keepdims=True)).reshape(np.shape(values))


def expert_name(expert: int, num_experts: int, slots: int = 1) -> str:
    """``expert 5``, or ``shard 1, copy 1``."""
    if slots == 1:
        return f'expert {expert}'
    shard, copy = divmod(expert, num_experts // slots)
    return f'shard {shard}, copy {copy}'
