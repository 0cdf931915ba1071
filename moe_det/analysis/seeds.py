"""Several seeds: experts have no names, so they are matched before one asks whether the seeds agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from .result import SIZE, SpecializationResult

MIN_SEEDS = 3
MIN_SIMILARITY = 0.5


def size_preference(table: ArrayLike) -> np.ndarray:
    """What each expert gets of each size, beyond what its share of each level explains.

    Args:
        table: (E, S) objects of one level, or (E, S, L).

    Returns:
        (E, S) observed minus expected counts, summed over levels, over all objects. Rows and columns sum to 0.
    """
    table = np.asarray(table, dtype=float)
    table = table[:, :, None] if table.ndim == 2 else table
    if table.ndim != 3 or (table < 0).any() or not table.sum() > 0:
        raise ValueError(f'expected (E, S) or (E, S, L) counts >= 0, not all 0, got shape {np.shape(table)}')
    level = table.sum((0, 1))
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / np.where(level > 0, level, 1)
    return (table - expected).sum(2) / level.sum()


def align_experts(tables: Sequence[ArrayLike], reference: int = 0) -> list[np.ndarray]:
    """Matches the experts of several seeds by their size preferences (Hungarian method).

    Args:
        tables: one (E, S) or (E, S, L) table per seed, of equal E and S.
        reference: index of the seed that the others are matched to.

    Returns:
        Per seed (E,) indices: ``table[indices]`` lists its experts in the order of the reference's.

    Raises:
        ValueError: there are no tables, or their shapes differ.
    """
    preferences = [size_preference(table) for table in tables]
    if not preferences:
        raise ValueError('no tables to align')
    shapes = {preference.shape for preference in preferences}
    if len(shapes) > 1:
        raise ValueError(f'tables must have the same experts and sizes, got {sorted(shapes)}')
    # a product is largest where preferences agree in sign; experts without preference fall where they do no harm
    scores = [preferences[reference] @ preference.T for preference in preferences]
    indices = [linear_sum_assignment(score, maximize=True)[1] for score in scores]
    indices[reference] = np.arange(len(preferences[reference]))
    return indices


@dataclass(frozen=True)
class Agreement:
    """What several seeds say together.

    Attributes:
        verdict: ``established`` or ``not established``.
        reason: why, in a sentence.
        verdicts: verdict of each seed.
        alignment: per seed (E,) indices as of :func:`align_experts`.
        similarity: (seeds, seeds) correlation of the aligned size preferences, -1..1; 0 for a seed without any.
    """

    verdict: str
    reason: str
    verdicts: tuple[str, ...]
    alignment: list[np.ndarray]
    similarity: np.ndarray


def agreement(results: Sequence[SpecializationResult]) -> Agreement:
    """Whether size specialisation repeats over seeds.

    It is established if at least three seeds, and more than half of all, are size-specialised and every two of those
    prefer the same sizes: their aligned preferences correlate by more than 0.5. Matching alone makes unrelated tables
    correlate somewhat, so a positive correlation would not do: experts that part small from the rest and experts
    that part large from the rest reach 0.5.

    Args:
        results: one per seed, of the same layer, data and settings.

    Raises:
        ValueError: there are no results, or their tables differ in experts or sizes.
    """
    if not results:
        raise ValueError('no results to compare')
    verdicts = tuple(result.verdict for result in results)
    agreeing = [seed for seed, verdict in enumerate(verdicts) if verdict == SIZE]
    tables = [result.expert_by_size_by_level for result in results]
    alignment = align_experts(tables, agreeing[0] if agreeing else 0)
    preferences = [size_preference(table)[order].ravel() for table, order in zip(tables, alignment, strict=True)]
    length = np.linalg.norm(preferences, axis=1, keepdims=True)
    unit = preferences / np.where(length > 0, length, 1)
    similarity = unit @ unit.T
    lowest = similarity[np.ix_(agreeing, agreeing)].min() if agreeing else 0.0

    count = f'{len(agreeing)} of {len(results)} seeds are {SIZE}'
    established = False
    if len(agreeing) < MIN_SEEDS:
        reason = f'{count}; at least {MIN_SEEDS} are needed'
    elif 2 * len(agreeing) <= len(results):
        reason = f'{count}; more than half are needed'
    elif lowest <= MIN_SIMILARITY:
        reason = f'{count}, but their experts prefer different sizes (lowest correlation {lowest:.2f})'
    else:
        established = True
        reason = f'{count} and their experts prefer the same sizes (lowest correlation {lowest:.2f})'
    untested = sum(results[seed].counterfactual is None for seed in agreeing)
    if untested:
        reason += f'; {untested} not tested by forcing experts'
    return Agreement('established' if established else 'not established', reason, verdicts, alignment, similarity)
