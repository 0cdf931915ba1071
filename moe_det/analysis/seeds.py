"""Several seeds: experts have no names, so they are matched before one asks whether the seeds agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from .result import SIZE, SpecializationResult

MIN_SEEDS = 3
AGREEMENT_ALPHA = 0.05
DRAWS = 1999


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


def align_experts(tables: Sequence[ArrayLike], reference: int = 0, slots: int = 1) -> list[np.ndarray]:
    """Matches the experts of several seeds by their size preferences (Hungarian method).

    Args:
        tables: one (E, S) or (E, S, L) table per seed, of equal E and S.
        reference: index of the seed that the others are matched to.
        slots: shards that the experts are copies of; a shard is matched as a whole.

    Returns:
        Per seed (E,) indices: ``table[indices]`` lists its experts in the order of the reference's.

    Raises:
        ValueError: there are no tables, or their shapes differ.
    """
    return list(_align(_preferences(tables), reference, slots))


def _preferences(tables: Sequence[ArrayLike], empty: bool = False) -> np.ndarray:
    """(seeds, E, S) size preferences of tables with the same experts and sizes; tables without objects have none."""
    preferences = [
        np.zeros(np.shape(table)[:2]) if empty and not np.any(table) else size_preference(table) for table in tables
    ]
    if not preferences:
        raise ValueError('no tables to align')
    shapes = sorted({preference.shape for preference in preferences})
    if len(shapes) > 1:
        found = ', '.join(f'{experts} experts by {sizes} sizes' for experts, sizes in shapes)
        raise ValueError(f'seeds can be compared only if they have the same experts and sizes, got {found}')
    return np.stack(preferences)


def _align(preferences: np.ndarray, reference: int, slots: int) -> np.ndarray:
    """Experts in the order of the reference's: (..., seeds, E) indices for (..., seeds, E, S) preferences."""
    # a product is largest where preferences agree in sign; experts without preference fall where they do no harm
    scores = preferences[..., reference, None, :, :] @ preferences.swapaxes(-1, -2)
    flat = scores.reshape(-1, *scores.shape[-2:])
    indices = np.array([_match(score, slots) for score in flat]).reshape(scores.shape[:-1])
    indices[..., reference, :] = np.arange(indices.shape[-1])
    return indices


def _match(scores: np.ndarray, slots: int) -> np.ndarray:
    """(E,) the column of each row for the largest sum, copies of a shard among those of a shard."""
    if slots == 1:
        return linear_sum_assignment(scores, maximize=True)[1]
    copies = len(scores) // slots
    blocks = scores.reshape(slots, copies, slots, copies).swapaxes(1, 2)
    orders = np.array([[linear_sum_assignment(block, maximize=True)[1] for block in line] for line in blocks])
    best = np.take_along_axis(blocks, orders[..., None], -1).sum((-2, -1))
    shards = linear_sum_assignment(best, maximize=True)[1]
    return (shards[:, None] * copies + orders[np.arange(slots), shards]).ravel()


def _correlations(preferences: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """(..., seeds, seeds) correlation of aligned preferences; 0 where a seed has none."""
    aligned = np.take_along_axis(preferences, indices[..., None], -2)
    flat = aligned.reshape(*aligned.shape[:-2], -1)
    length = np.linalg.norm(flat, axis=-1, keepdims=True)
    unit = flat / np.where(length > 0, length, 1)
    return unit @ unit.swapaxes(-1, -2)


def _mean_of_pairs(similarity: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(similarity.shape[-1], 1)
    return similarity[..., first, second].mean(-1)


def agreement_p_value(
    preferences: ArrayLike, reference: int = 0, draws: int = DRAWS, seed: int = 0, slots: int = 1
) -> float:
    """How often unrelated seeds agree as well as these after matching.

    Matching alone makes unrelated preferences correlate by 0.5 and more, so the mean correlation of all pairs is
    compared with that of random preferences which are matched in the same way. A random preference is a seed's own,
    multiplied from the left by a random orthogonal matrix that keeps sums over experts at 0: which expert prefers what
    is random, while strength and the axes in the space of sizes (mostly small against large) stay. So a seed's own
    structure is not evidence, only what it shares with the others is. Copies of a shard are rotated among themselves:
    each shard has all objects. Two experts mirror each other, so matching always makes them agree: the p-value is 1.

    Args:
        preferences: (seeds, E, S) as of :func:`size_preference`, of at least two seeds, in any order of experts.
        reference: index of the seed that the others are matched to.
        draws: how many sets of random preferences.
        seed: of the draws.
        slots: shards that the experts are copies of.

    Returns:
        The share of sets, the observed one among them, whose mean correlation is at least the observed one.
    """
    preferences = np.asarray(preferences, dtype=float)
    seeds, experts, _ = preferences.shape
    if seeds < 2:
        raise ValueError(f'agreement takes at least two seeds, got {seeds}')
    copies = experts // slots
    if copies < 3:
        return 1.0
    rng = np.random.default_rng(seed)
    # columns: an orthonormal basis of what is orthogonal to the vector of ones
    basis = np.linalg.qr(np.column_stack([np.ones(copies), np.eye(copies)[:, 1:]]))[0][:, 1:]
    rotations, upper = np.linalg.qr(rng.normal(size=(draws, seeds, slots, copies - 1, copies - 1)))
    # signs that make the matrices uniform: F. Mezzadri, Notices of the AMS 54, 592 (2007)
    rotations = rotations * np.sign(np.diagonal(upper, axis1=-2, axis2=-1))[..., None, :]
    random = basis @ rotations @ (basis.T @ preferences.reshape(seeds, slots, copies, -1))
    both = preferences, random.reshape(draws, *preferences.shape)
    observed, found = (_mean_of_pairs(_correlations(some, _align(some, reference, slots))) for some in both)
    return float((1 + (found >= observed - 1e-9).sum()) / (1 + draws))


@dataclass(frozen=True)
class Agreement:
    """What several seeds say together.

    Attributes:
        verdict: ``established`` or ``not established``.
        reason: why, in a sentence.
        verdicts: verdict of each result.
        alignment: per result (E,) indices as of :func:`align_experts`.
        similarity: (results, results) correlation of the aligned size preferences, -1..1; 0 for one without any.
        runs: different results; copies of one count once.
        agreeing: of these, how many are size-specialised.
        p_value: of the agreement between the size-specialised ones, see :func:`agreement_p_value`; None for fewer than
            three.
    """

    verdict: str
    reason: str
    verdicts: tuple[str, ...]
    alignment: list[np.ndarray]
    similarity: np.ndarray
    runs: int
    agreeing: int
    p_value: float | None


def agreement(
    results: Sequence[SpecializationResult], verdicts: Sequence[str] | None = None, slots: int = 1
) -> Agreement:
    """Whether size specialisation repeats over seeds.

    It is established if at least three different seeds, and more than half of all, are size-specialised and those
    prefer the same sizes: their matched preferences correlate more than those of unrelated experts (p <= 0.05, see
    :func:`agreement_p_value`). Preferences are those for relative size within the level where every result has them,
    else those for the sizes that were given. Results with identical tables and numbers are the same weights and count
    once.

    Args:
        results: one per seed, of the same layer, data and settings.
        verdicts: verdict of each, with what random gates and the swap test say; by default that of the result, which
            knows arrays alone and is never ``size-specialised``.
        slots: shards that the experts are copies of.

    Raises:
        ValueError: there are no results, their tables differ in experts or sizes, or there are not as many verdicts.
    """
    if not results:
        raise ValueError('no results to compare')
    verdicts = tuple(result.verdict for result in results) if verdicts is None else tuple(verdicts)
    if len(verdicts) != len(results):
        raise ValueError(f'expected a verdict for each of {len(results)} results, got {len(verdicts)}')
    preferences = _preferences(_tables(results), empty=True)
    different = _first_of_each(results, preferences)
    agreeing = [seed for seed in different if verdicts[seed] == SIZE]
    alignment = _align(preferences, agreeing[0] if agreeing else 0, slots)
    similarity = _correlations(preferences, alignment)
    p_value = agreement_p_value(preferences[agreeing], slots=slots) if len(agreeing) >= MIN_SEEDS else None

    seeds = f'{len(different)} seed{"s" if len(different) > 1 else ""}'
    reason = f'{len(agreeing)} of {seeds} {"are" if len(different) > 1 else "is"} {SIZE}'
    established = False
    if len(agreeing) < MIN_SEEDS:
        reason += f'; at least {MIN_SEEDS} are needed'
    elif 2 * len(agreeing) <= len(different):
        reason += '; more than half are needed'
    elif preferences.shape[1] < 3 * slots:
        what = 'experts' if slots == 1 else 'copies of a shard'
        reason += (
            f', but whether they prefer the same sizes cannot be told of fewer than three {what}: two mirror each '
            'other, and matching them makes any seeds agree'
        )
    else:
        established = p_value is not None and p_value <= AGREEMENT_ALPHA
        seen = 'and their experts prefer' if established else 'but their experts were not shown to prefer'
        mean = _mean_of_pairs(similarity[np.ix_(agreeing, agreeing)])
        reason += f', {seen} the same sizes (mean correlation {mean:.2f}, p = {p_value:.2g} against unrelated experts)'
    if len(different) < len(results):
        reason += f'; identical results (the same weights) count once: {len(results)} results, {seeds}'
    verdict = 'established' if established else 'not established'
    return Agreement(verdict, reason, verdicts, list(alignment), similarity, len(different), len(agreeing), p_value)


def _tables(results: Sequence[SpecializationResult]) -> list[np.ndarray]:
    """(E, S, L) tables on the same scale of sizes."""
    relative = [getattr(result, 'relative_size', None) for result in results]
    known = [found.expert_by_size_by_level for found in relative if found is not None]
    if len(known) == len(results):
        return known
    return [result.expert_by_size_by_level for result in results]


def _first_of_each(results: Sequence[SpecializationResult], preferences: np.ndarray) -> list[int]:
    """Indices of the results that repeat none before them."""
    seen: dict[object, int] = {}
    for index, (result, preference) in enumerate(zip(results, preferences, strict=True)):
        table = np.asarray(result.expert_by_size_by_level, dtype=float)
        numbers = (result.mi_bits, result.mi_given_level_bits, result.level_mi_bits)
        # gates that always choose alike give the same table whatever their weights
        prefers = np.abs(preference).max() > 1e-12
        seen.setdefault((table.shape, table.tobytes(), numbers) if prefers else index, index)
    return list(seen.values())
