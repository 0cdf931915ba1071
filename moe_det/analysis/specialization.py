"""Do experts sort objects by size, beyond what the feature level alone explains?"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import bootstrap_cmi, score_interval
from .information import (
    chance_corrected_v,
    conditional_entropy,
    conditional_mutual_information,
    largest_contingency,
    mean_square_contingency,
    mutual_information,
)
from .permutation import level_shifted_tables, permuted_tables, shuffled_tables, upper_tail
from .result import ALPHA, RelativeSize, SpecializationResult
from .rows import Ids, ObjectRows, gather_rows
from .sizes import QUANTILES, relative_sizes, size_names

MIN_PERMUTATIONS = 99  # fewer cannot give p <= 0.01
MIN_OBJECTS = 30  # fewer say nothing, whatever their p-value
MIN_IMAGES = 5  # 4! = 24 arrangements cannot give p <= 0.01
_SHUFFLES = 500  # enough for a mean
_LEVEL_PERMUTATIONS = 2000  # enough for p <= 0.01


def measure_specialization(
    image_ids: Ids,
    levels: ArrayLike,
    experts: ArrayLike,
    sizes: ArrayLike,
    *,
    num_experts: int,
    num_sizes: int = 3,
    permutations: int = 10000,
    bootstrap: int = 10000,
    seed: int = 0,
    patches: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    areas: ArrayLike | None = None,
    quantiles: int = QUANTILES,
    groups: Ids | None = None,
    expert_slots: int = 1,
) -> SpecializationResult:
    """Measures whether experts depend on object size given the feature level, with a test that respects routing rows.

    Size and level nearly coincide in a feature pyramid, so I(E;S) alone would call every router that recognises its
    level a size specialist; hence I(E;S | level). COCO's bins are nearly a function of the level, so little is left of
    them given the level; with ``areas`` size *within the level* (quantiles of area among the objects of a level) is
    measured as well, which the level leaves open.

    All objects of one routing row, (image, level) or (image, level, patch), share its expert, so the test exchanges
    rows between images (:func:`~moe_det.analysis.permutation.permuted_tables`). Its null hypothesis is that, given the
    level (and patch position) and the number of objects, the routing of an image has nothing to do with the sizes of
    its objects. Rows without objects take no part.

    Information and Cramer's V are corrected by their mean under permutation: Miller and Madow's term assumes
    independent objects and is too small here. With ``patches`` that mean, like the null, contains what the patch
    position explains, so the corrected I(E;S | level) is what goes beyond position too.

    Args:
        image_ids: (n,) image of each object: integers of any size or strings.
        levels: (n,) level of each object, integers >= 0. Where one decision holds for all levels of an image, still the
            level of the object; its expert is then the same at all of them.
        experts: (n,) top expert of the object's row, integers 0..E-1, or (n, E) its expert masses, each row summing
            to 1.
        sizes: (n,) size bin, integers 0..num_sizes-1; see :func:`~moe_det.analysis.size_bins`.
        num_experts: E.
        num_sizes: S.
        permutations: draws of the null distribution, at least 99.
        bootstrap: resamples for the intervals; 0 for none.
        seed: of all random draws; equal seeds give equal results.
        patches: (n,) patch position of that row inside its level, integers >= 0; None if a level has one row per image.
        weights: (n,) positive weight of each entry, for objects that several rows deal with: one entry per row, the
            weights of an object summing to 1. None weighs all entries 1.
        areas: (n,) area of each object in pixels, for the size within the level; None leaves that out.
        quantiles: Q, bins of the size within the level.
        groups: (n,) group of each object's image, ids of any kind: images that depend on each other, such as the
            frames of a video, are exchanged and resampled as one. None takes images as independent.
        expert_slots: G, where every decision takes one expert of each of G slots (shards); experts 0 to E / G - 1 are
            the first slot, and the masses of each slot sum to 1 / G. It scales Cramer's V.

    Returns:
        Numbers, tables and a verdict. If the data cannot carry a p-value it has none, but a ``reason``.

    Raises:
        ValueError: arrays do not fit each other or the ranges, the expert differs inside one routing row, or ids are
            floats.
        DataError: there are no objects, or all are of one size.
    """
    if permutations < MIN_PERMUTATIONS:
        raise ValueError(f'permutations must be at least {MIN_PERMUTATIONS} for p <= {ALPHA}, got {permutations}')
    if bootstrap < 0:
        raise ValueError(f'bootstrap must be 0 (no interval) or more, got {bootstrap}')
    gather = functools.partial(
        gather_rows,
        num_experts=num_experts,
        patches=patches,
        weights=weights,
        groups=groups,
        expert_slots=expert_slots,
    )
    rows = gather(image_ids, levels, experts, sizes, num_sizes=num_sizes)
    views = [_View(num_sizes, 1, 'sizes')]
    relative = None
    if areas is not None:
        relative = relative_sizes(areas, levels, weights, quantiles)
        # one table of both sizes: the permutations serve both
        both = np.asarray(sizes) * quantiles + relative.bins
        rows = gather(image_ids, levels, experts, both, num_sizes=num_sizes * quantiles)
        views = [_View(num_sizes, quantiles, 'sizes'), _View(num_sizes, quantiles, 'relative')]
    # one stream per part: the p-value must not depend on whether an interval was requested
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(5)]
    joint = rows.image_tables().sum(0)
    permuted = permuted_tables(rows, permutations, streams[0])
    cores = [_core(rows, view(joint), view(permuted)) for view in views]
    if bootstrap and any(core.p_value is not None for core in cores):
        values = bootstrap_cmi(rows, bootstrap, streams[1], views)
        for core, of_view in zip(cores, values, strict=True):
            if core.p_value is not None:
                core.interval = score_interval(of_view, core.bits, (core.raw_bits - core.bits, core.null_variance))

    core, tables = cores[0], views[0](joint)
    shuffled = shuffled_tables(rows, _SHUFFLES, streams[2])
    whole = None
    if rows.one_decision_per_image:  # so that images can be exchanged whole
        flat = np.zeros(rows.num_objects, dtype=int)
        of_images = gather(image_ids, flat, experts, sizes, num_sizes=num_sizes)
        of_all_levels = of_images.image_tables().sum(0)
        whole = _core(of_images, of_all_levels, permuted_tables(of_images, permutations, streams[4]))
        raw_bits, bits = whole.raw_bits, whole.bits
    else:  # without a p-value, for the level alone would make it significant
        raw_bits = float(mutual_information(tables.sum(0)))
        bits = raw_bits - float(mutual_information(views[0](shuffled).sum(1)).mean())
    level = _level(rows, tables, shuffled, min(permutations, _LEVEL_PERMUTATIONS), streams[3])
    return SpecializationResult(
        mi_bits=bits,
        mi_p_value=None if whole is None else whole.p_value,
        mi_cramers_v=None if whole is None else whole.v,
        mi_given_level_bits=core.bits,
        mi_given_level_ci=core.interval,
        p_value=core.p_value,
        reason=core.reason,
        null_99=core.null_99,
        cramers_v_given_level=core.v,
        level_mi_bits=level.bits,
        level_p_value=level.p_value,
        level_cramers_v=level.v,
        h_size_given_level=core.ceiling,
        expert_by_size=tables.sum(0),
        expert_by_level=tables.sum(2).T,
        expert_by_size_by_level=tables.transpose(1, 2, 0),
        levels=tuple(rows.levels.tolist()),
        num_objects=rows.num_objects,
        num_images=len(rows.images),
        num_groups=rows.num_groups,
        num_rows=rows.num_rows,
        permutations=permutations,
        relative_size=None if relative is None else cores[1].relative(views[1](joint), relative.limits),
        raw={
            'mi_bits': raw_bits,
            'mi_given_level_bits': core.raw_bits,
            'level_mi_bits': level.raw_bits,
            'cramers_v_given_level': core.raw_v,
        },
        notes=_notes(rows, tables),
    )


@dataclass(frozen=True)
class _View:
    """Makes the tables of one kind of size out of those of both: (..., S * Q) -> (..., S) or (..., Q)."""

    num_sizes: int
    quantiles: int
    kind: str

    def __call__(self, tables: np.ndarray) -> np.ndarray:
        split = tables.reshape(*tables.shape[:-1], self.num_sizes, self.quantiles)
        return split.sum(-1 if self.kind == 'sizes' else -2)


@dataclass
class _Core:
    """What is measured of one kind of size given the level; see the attributes of the result."""

    bits: float
    raw_bits: float
    p_value: float | None
    reason: str
    null_99: float
    null_variance: float
    v: float
    raw_v: float
    ceiling: float
    interval: tuple[float, float] | None = None

    def relative(self, tables: np.ndarray, limits: np.ndarray) -> RelativeSize:
        """The result of size within the level."""
        return RelativeSize(
            mi_bits=self.bits,
            mi_ci=self.interval,
            p_value=self.p_value,
            reason=self.reason,
            null_99=self.null_99,
            cramers_v=self.v,
            ceiling_bits=self.ceiling,
            expert_by_size=tables.sum(0),
            expert_by_size_by_level=tables.transpose(1, 2, 0),
            limits=limits,
            raw={'mi_bits': self.raw_bits, 'cramers_v': self.raw_v},
        )


def _core(rows: ObjectRows, tables: np.ndarray, permuted: np.ndarray) -> _Core:
    """The dependence of expert and size given the level.

    Args:
        rows: the observed rows.
        tables: (L, E, S) observed.
        permuted: (P, L, E, S) of the null.
    """
    cmi = float(conditional_mutual_information(tables))
    phi2, largest = float(mean_square_contingency(tables)), largest_contingency(tables, rows.expert_slots)
    null = conditional_mutual_information(permuted)
    mean = float(null.mean())
    p_value, reason = _p_value(rows, tables, cmi, null)
    return _Core(
        bits=cmi - mean,
        raw_bits=cmi,
        p_value=p_value,
        reason=reason,
        null_99=float(np.quantile(null, 1 - ALPHA)) - mean,
        null_variance=float(null.var()),
        v=chance_corrected_v(phi2, float(mean_square_contingency(permuted).mean()), largest),
        raw_v=float(np.sqrt(phi2 / largest)) if largest > 0 else 0.0,
        ceiling=float(conditional_entropy(tables)),
    )


def _p_value(rows: ObjectRows, tables: np.ndarray, cmi: float, null: np.ndarray) -> tuple[float | None, str]:
    """The p-value of I(E;S | level), or None and what the data lack for one."""
    objects = tables.sum()
    if objects < MIN_OBJECTS - 1e-6:
        return None, f'{objects:.0f} objects; at least {MIN_OBJECTS} are needed to tell anything'
    exchanged = rows.exchanged_groups
    if exchanged < MIN_IMAGES:
        unit = 'images' if rows.num_groups == len(rows.images) else 'groups of images'
        return None, (
            f'{exchanged} {unit} have as many objects as another one has at the same level; '
            f'a permutation test needs at least {MIN_IMAGES}'
        )
    if (tables.sum((0, 2)) > 0).sum() == 1:
        return 1.0, ''
    if conditional_entropy(tables) < 1e-9:
        return None, 'inside every level all objects are of one size, so size and level cannot be told apart'
    if not any(slot.varies for slot in rows.slots):
        return 1.0, ''  # many images, yet the expert never changes inside a level: a fixed map
    p_value, smallest = upper_tail(cmi, null)
    if smallest > ALPHA:
        return None, (
            f'too few distinct arrangements: over {rows.num_rows} routing rows of {len(rows.images)} images no outcome '
            f'could have p below {smallest:.2g}'
        )
    return p_value, ''


@dataclass(frozen=True)
class _Level:
    """The dependence of the expert on the level; see the attributes of the result."""

    bits: float
    raw_bits: float
    p_value: float | None
    v: float


def _level(
    rows: ObjectRows, tables: np.ndarray, shuffled: np.ndarray, permutations: int, rng: np.random.Generator
) -> _Level:
    table = tables.sum(2).T  # (E, L)
    chance = shuffled.sum(3).swapaxes(1, 2)
    raw, phi2 = float(mutual_information(table)), float(mean_square_contingency(table[None]))
    mean_phi2 = float(mean_square_contingency(chance[:, None]).mean())
    p_value = None
    several = np.count_nonzero(rows.level_weights(), axis=1) > 1
    if len(np.unique(rows.groups[several])) >= MIN_IMAGES:
        null = mutual_information(level_shifted_tables(rows, permutations, rng))
        p_value, smallest = upper_tail(raw, null)
        if smallest > ALPHA and (table.sum(1) > 0).sum() > 1:
            p_value = None
    return _Level(
        bits=raw - float(mutual_information(chance).mean()),
        raw_bits=raw,
        p_value=p_value,
        v=chance_corrected_v(phi2, mean_phi2, largest_contingency(table[None], rows.expert_slots)),
    )


def _notes(rows: ObjectRows, tables: np.ndarray) -> tuple[str, ...]:
    notes = []
    names = size_names(tables.shape[2])
    empty = [name for name, count in zip(names, tables.sum((0, 1)), strict=True) if count == 0]
    if empty:
        notes.append(f'no object is {" or ".join(empty)}: nothing is said about that size')
    used = np.flatnonzero(tables.sum((0, 2)))
    if len(used) == 1:
        notes.append(f'only expert {used[0]} was used')
    elif not any(slot.varies for slot in rows.slots):
        notes.append('at every level all images use the same expert: the routing is a fixed map of the level')
    alone = [len(slot.images) - len(slot.exchanged) for slot in rows.slots]
    if any(alone):
        levels = ', '.join(
            dict.fromkeys(str(rows.levels[slot.level]) for slot, n in zip(rows.slots, alone, strict=True) if n)
        )
        notes.append(
            f'{sum(alone)} routing rows cannot be exchanged, no other image has as many objects there (level {levels})'
        )
    return tuple(notes)
