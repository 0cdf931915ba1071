"""Does what an expert does agree with what it is used for? Average precision by size when each expert is forced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .seeds import size_preference
from .slots import within_slots

SIZE_PRECISIONS = ('AP_S', 'AP_M', 'AP_L')


def advantage(forced: Sequence[dict[str, float | None]], slots: int = 1) -> np.ndarray:
    """(E, 3) how much better each expert is at a size than the others, net of how good it is overall.

    Args:
        forced: by expert, the average precisions when every row goes to it.
        slots: G; an expert is compared with the others of its slot.

    Returns:
        AP_S, AP_M, AP_L with the mean over experts, then the mean over sizes taken away; NaN where an AP is missing.
    """
    values = np.array([[np.nan if row[name] is None else row[name] for name in SIZE_PRECISIONS] for row in forced])
    values = within_slots(values, slots)
    return values - _row_means(values)


def _row_means(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)


def agreement(table: np.ndarray, forced: Sequence[dict[str, float | None]], slots: int = 1) -> float | None:
    """Cosine between :func:`~moe_det.analysis.seeds.size_preference` and :func:`advantage` over experts and sizes.

    1: each expert is used, beyond what its level explains, for the sizes that it is better at; below 0: for those
    that it is worse at.

    Args:
        table: (E, S, L) objects by expert, size and level.
        forced: by expert, the average precisions when every row goes to it.
        slots: G.

    Returns:
        From -1 to 1; None if one of them is zero everywhere, or nothing is known.
    """
    if len(forced) <= slots:
        return None
    used, good = size_preference(table), advantage(forced, slots)
    known = ~np.isnan(good)
    used, good = used[known], good[known]
    scale = np.linalg.norm(used) * np.linalg.norm(good)
    return float(used @ good / scale) if scale > 1e-12 else None


def spreads(forced: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Largest minus smallest AP of each size over the forced experts (arXiv 2204.10598 reports these)."""
    found = {}
    for name in SIZE_PRECISIONS:
        values = [value for row in forced if (value := row[name]) is not None]
        found[f'spread_{name}'] = max(values) - min(values) if values else None
    return found
