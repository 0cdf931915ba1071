"""Does a trained gate sort objects by size more than a gate with random weights on the same features?

Features of a network tell the scale of what they see, so any function of them sorts by size to some degree. The
yardstick is a linear gate with random weights on the pooled features of each row (the form of arXiv 2204.10598's
GAP-FC gate), which uses each expert at each level for as many rows as the trained gate does. Where experts lie in slots
(see :mod:`.slots`), both choose in each slot.

Letters: R rows, C channels, E experts, G slots, n entries, Q quantiles, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .information import conditional_mutual_information

COUNT = 200
BEYOND = 0.95  # a trained gate is beyond random gates when it has more bits than this share of them
_SWEEPS = 100
_TOLERANCE = 0.005  # share of a level's rows that may go to other experts than asked


@dataclass(frozen=True)
class RandomGates:
    """Information of random gates about the size within the level, and the trained gate's place among them.

    Attributes:
        bits: of the trained gate's top expert, plug-in; the mean over the slots where there are several.
        values: (count,) of the random gates, plug-in, ascending.
    """

    bits: float
    values: np.ndarray

    @property
    def quantile(self) -> float:
        """Share of random gates with fewer bits; ties count half."""
        return float(((self.values < self.bits).sum() + (self.values == self.bits).sum() / 2) / len(self.values))

    @property
    def beyond(self) -> bool:
        """Whether the trained gate sorts more than random gates do."""
        return self.quantile > BEYOND


def random_gates(
    features: np.ndarray,
    top: np.ndarray,
    levels: np.ndarray,
    *,
    num_experts: int,
    rows: np.ndarray,
    sizes: np.ndarray,
    entry_levels: np.ndarray,
    weights: np.ndarray,
    num_sizes: int = 3,
    count: int = COUNT,
    seed: int = 0,
) -> RandomGates:
    """Measures I(E; size within the level | level) of the trained gate and of random gates that match its use.

    A random gate's logits are W f with standard normal W; a bias for each level and expert, found by
    :func:`matching_bias`, makes it choose each expert for as many rows of the level as the trained gate does. Without
    it, a random gate that always chooses one expert would know nothing for that reason alone. Values are plug-in ones:
    with equal use their bias is alike.

    Args:
        features: (R, C) pooled features of each row.
        top: (R,) the trained gate's top expert, or (R, G) that of each slot.
        levels: (R,) level of each row, 0 where a row serves all levels.
        num_experts: E.
        rows: (n,) row of each entry.
        sizes: (n,) size within the level of each entry, 0..num_sizes-1.
        entry_levels: (n,) level of each entry.
        weights: (n,) weight of each entry.
        num_sizes: Q.
        count: random gates.
        seed: of their weights.
    """
    names, level = np.unique(entry_levels, return_inverse=True)
    cells = level * num_sizes + sizes
    spread = np.zeros((len(top), len(names) * num_sizes))
    np.add.at(spread, (rows, cells), weights)
    held = np.flatnonzero(spread.any(axis=1))
    top = top.reshape(len(top), -1)
    slots = top.shape[1]
    copies = num_experts // slots

    def information(experts: np.ndarray) -> float:
        # slots have equal parts of every entry, so this is the mean of their information
        table = np.zeros((num_experts, spread.shape[1]))
        np.add.at(table, experts[held], spread[held, None])
        return float(conditional_mutual_information(table.reshape(num_experts, len(names), num_sizes).swapaxes(0, 1)))

    # rows of one level differ little compared with what they share, which a bias removes anyway
    of_level = [np.flatnonzero(levels == number) for number in np.unique(levels)]
    centred = features.astype(np.float64)
    for at in of_level:
        centred[at] -= centred[at].mean(axis=0)
    rng = np.random.default_rng(seed)
    values = np.empty(count)
    for number in range(count):
        logits = centred @ rng.normal(size=(features.shape[1], num_experts))
        chosen = np.empty_like(top)
        for slot, first in enumerate(range(0, num_experts, copies)):
            of_slot = logits[:, first : first + copies]
            for at in of_level:
                wanted = np.bincount(top[at, slot] - first, minlength=copies)
                chosen[at, slot] = first + (of_slot[at] + matching_bias(of_slot[at], wanted)).argmax(axis=1)
        values[number] = information(chosen)
    return RandomGates(information(top), np.sort(values))


def matching_bias(logits: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """A bias with which the largest logit falls to each expert for a wanted number of rows.

    It is the dual of an optimal transport between rows and experts. Each step moves one expert's bias to where it
    wins exactly its number of rows against the others as they are; steps go round until all fit.

    Args:
        logits: (R, E).
        wanted: (E,) rows for each expert, which sum to R.

    Returns:
        (E,) bias; -inf for experts that get no row.
    """
    used = np.flatnonzero(wanted)
    bias = np.where(wanted > 0, 0.0, -np.inf)
    if len(used) < 2:
        return bias
    for _ in range(_SWEEPS):
        for expert in used:
            others = (logits[:, used[used != expert]] + bias[used[used != expert]]).max(axis=1)
            lead = np.sort(others - logits[:, expert])  # the bias at which the expert wins each row
            least, next_one = lead[wanted[expert] - 1], lead[min(wanted[expert], len(lead) - 1)]
            bias[expert] = (least + next_one) / 2
        bias[used] -= bias[used].mean()
        got = np.bincount((logits + bias).argmax(axis=1), minlength=len(wanted))
        if np.abs(got - wanted).sum() / 2 <= _TOLERANCE * len(logits):
            break
    return bias
