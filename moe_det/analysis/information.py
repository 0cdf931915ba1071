"""Information and association in tables of counts: plug-in values in bits, without any correction.

Tables may hold fractional counts (soft expert masses, weighted objects). Leading axes are batch axes, so that thousands
of permuted tables cost one call. A table is (E, S), experts by sizes; a stack given the level is (L, E, S).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlogy


def _plogp(counts: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Sum of x log2 x over ``axes``; 0 log 0 is 0."""
    return xlogy(counts, counts).sum(axes) / np.log(2)


def mutual_information(table: ArrayLike) -> np.ndarray:
    """I(A;B) of joint counts, in bits.

    Args:
        table: (..., A, B) counts >= 0; batch axes lead.

    Returns:
        (...) plug-in mutual information; 0 for an empty table. Biased upwards in small samples.
    """
    table = np.asarray(table, dtype=float)
    return conditional_mutual_information(table[..., None, :, :])


def conditional_mutual_information(tables: ArrayLike) -> np.ndarray:
    """I(A;B | L) of joint counts, in bits: the levels' mutual informations, weighted by the levels' counts.

    Args:
        tables: (..., L, A, B) counts >= 0; batch axes lead.

    Returns:
        (...) plug-in conditional mutual information; 0 for empty tables.
    """
    tables = np.asarray(tables, dtype=float)
    total = tables.sum((-3, -2, -1))
    bits = (
        _plogp(tables, (-3, -2, -1))
        - _plogp(tables.sum(-1), (-2, -1))
        - _plogp(tables.sum(-2), (-2, -1))
        + _plogp(tables.sum((-2, -1)), (-1,))
    )
    return bits / np.where(total > 0, total, 1)


def conditional_entropy(tables: ArrayLike) -> np.ndarray:
    """H(B | L) of joint counts, in bits: what is left to know of B once the level is known.

    Args:
        tables: (..., L, A, B) counts >= 0; A is summed out.
    """
    columns = np.asarray(tables, dtype=float).sum(-2)
    total = columns.sum((-2, -1))
    return (_plogp(columns.sum(-1), (-1,)) - _plogp(columns, (-2, -1))) / np.where(total > 0, total, 1)


def mean_square_contingency(tables: ArrayLike) -> np.ndarray:
    """phi^2 given the level: the chi-squares of the levels' tables, summed, over the total count.

    Args:
        tables: (..., L, A, B) counts >= 0. Empty rows, columns and levels add nothing.
    """
    tables = np.asarray(tables, dtype=float)
    level = tables.sum((-2, -1))
    expected = tables.sum(-1, keepdims=True) * tables.sum(-2, keepdims=True)  # times the level's count
    ratio = np.divide(tables**2, expected, out=np.zeros_like(tables), where=expected > 0)
    chi_square = level * (ratio.sum((-2, -1)) - 1)
    total = level.sum(-1)
    # independent cells leave rounding errors below zero
    return np.maximum(chi_square.sum(-1), 0.0) / np.where(total > 0, total, 1)


def largest_contingency(tables: ArrayLike, slots: int = 1) -> float:
    """The phi^2 of :func:`mean_square_contingency` that perfect association would have.

    It is the count-weighted mean over levels of min(A, B) - 1, where A counts the rows (experts) that occur in any
    level and B the columns (sizes) that occur in this level: which sizes a level holds is a matter of the data, whether
    a router varies inside a level is its own doing and must not shrink the yardstick. Where every decision takes one
    expert of each slot, phi^2 is the mean of the slots' own, and so is its largest value.

    Args:
        tables: (L, A, B) counts >= 0.
        slots: number of slots of equal size that the rows are divided into.
    """
    tables = np.asarray(tables, dtype=float)
    used = (tables.sum((0, 2)) > 0).reshape(slots, -1).sum(1)
    columns = (tables.sum(1) > 0).sum(1)
    level = tables.sum((1, 2))
    most = np.maximum(np.minimum(used[:, None], columns) - 1, 0).mean(0)
    return float((level * most).sum() / max(level.sum(), 1e-300))


def chance_corrected_v(phi2: float, chance: float, largest: float) -> float:
    """Cramer's V, corrected for the phi^2 that chance alone gives: sqrt((phi^2 - chance) / (largest - chance)).

    Bergsma (J. Korean Stat. Soc. 42, 2013) subtracts (A - 1)(B - 1) / (n - 1), which is the mean of phi^2 when n
    independent objects are permuted. Objects that share a routing row are not independent and their chance level is
    higher, hence ``chance`` is the mean over the permutations that the test uses. With one object per row and a square
    table the two agree. The result is 0 when phi^2 does not exceed chance, and 1 for perfect association.

    Args:
        phi2: observed mean square contingency.
        chance: its mean under permutation.
        largest: its value under perfect association (:func:`largest_contingency`).
    """
    if largest - chance <= 1e-12 or phi2 <= chance:
        return 0.0
    return float(np.sqrt(min((phi2 - chance) / (largest - chance), 1.0)))
