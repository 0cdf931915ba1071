"""Do experts specialise in object size, beyond what the feature level alone explains?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from .bootstrap import bootstrap_cmi, centred_interval
from .description import size_names
from .information import (
    chance_corrected_v,
    conditional_entropy,
    conditional_mutual_information,
    largest_contingency,
    mean_square_contingency,
    mutual_information,
)
from .permutation import level_shifted_tables, permuted_tables, shuffled_tables, upper_tail
from .result import ALPHA, SpecializationResult, holm
from .rows import ObjectRows, gather_rows

__all__ = ['SpecializationMeter', 'SpecializationResult', 'holm', 'measure_specialization', 'size_bins']

MIN_PERMUTATIONS = 99  # fewer cannot give p <= 0.01
MIN_IMAGES = 5  # 4! = 24 arrangements cannot give p <= 0.01
_SHUFFLES = 500  # enough for a mean
_LEVEL_PERMUTATIONS = 2000  # enough for p <= 0.01


def size_bins(areas: ArrayLike, limits: Sequence[float] = (32**2, 96**2)) -> np.ndarray:
    """Size bin of each object from its area in pixels: 0 small, 1 medium, 2 large.

    COCO's ranges include both ends, so that an area of exactly 1024 counts as small and as medium. A table needs one
    bin per object: here an area on a limit belongs to the smaller bin.

    Args:
        areas: (n,) areas, the annotation's ``area`` (of the mask, where there is one) in pixels of the original image.
        limits: ascending upper limits of all bins but the last.

    Returns:
        (n,) integers 0..len(limits).

    Raises:
        ValueError: an area is negative or not finite, or the limits do not ascend.
    """
    areas, limits = np.asarray(areas, dtype=float), np.asarray(limits, dtype=float)
    if (np.diff(limits) <= 0).any():
        raise ValueError(f'limits must ascend, got {limits.tolist()}')
    wrong = ~(np.isfinite(areas) & (areas >= 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f'areas[{at}] is {areas.flat[at]}, expected a finite area >= 0')
    return np.searchsorted(limits, areas, side='left')


def measure_specialization(
    image_ids: ArrayLike,
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
) -> SpecializationResult:
    """Measures whether experts depend on object size given the feature level, with a test that respects routing rows.

    Size and level nearly coincide in a feature pyramid, so I(E;S) alone would call every router that recognises its
    level a size specialist; hence I(E;S | level). All objects of one routing row, (image, level) or (image, level,
    patch), share its expert, so the test exchanges rows between images
    (:func:`~moe_det.analysis.permutation.permuted_tables`). Its null hypothesis is that, given the level (and patch
    position), the routing of an image has nothing to do with the sizes of its objects. Rows without objects take no
    part.

    Information and Cramer's V are corrected by their mean under permutation: Miller and Madow's term assumes
    independent objects and is too small here. With ``patches`` that mean, like the null, contains what the patch
    position explains, so the corrected I(E;S | level) is what goes beyond position too.

    Args:
        image_ids: (n,) image of each object.
        levels: (n,) level of the row that dealt with the object, integers >= 0; all 0 where a decision holds for all
            levels.
        experts: (n,) top expert of that row, integers 0..E-1, or (n, E) its expert masses, each row summing to 1.
        sizes: (n,) size bin, integers 0..num_sizes-1; see :func:`size_bins`.
        num_experts: E.
        num_sizes: S.
        permutations: draws of the null distribution, at least 99.
        bootstrap: resamples for the interval; 0 for none.
        seed: of all random draws; equal seeds give equal results.
        patches: (n,) patch position of that row inside its level, integers >= 0; None if a level has one row per image.
        weights: (n,) positive weight of each entry, for objects that several rows deal with: one entry per row, the
            weights of an object summing to 1. None weighs all entries 1.

    Returns:
        Numbers, tables and a verdict. If the data cannot carry a p-value it has none, but a ``reason``.

    Raises:
        ValueError: arrays do not fit each other or the ranges, or the expert differs inside one routing row.
        DataError: there are no objects, or all are of one size.
    """
    if permutations < MIN_PERMUTATIONS:
        raise ValueError(f'permutations must be at least {MIN_PERMUTATIONS} for p <= {ALPHA}, got {permutations}')
    if bootstrap < 0:
        raise ValueError(f'bootstrap must be 0 (no interval) or more, got {bootstrap}')
    rows = gather_rows(
        image_ids,
        levels,
        experts,
        sizes,
        num_experts=num_experts,
        num_sizes=num_sizes,
        patches=patches,
        weights=weights,
    )
    # one stream per part: the p-value must not depend on whether an interval was asked for
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)]
    tables = rows.image_tables().sum(0)
    cmi = float(conditional_mutual_information(tables))
    phi2 = float(mean_square_contingency(tables))
    largest = largest_contingency(tables)

    permuted = permuted_tables(rows, permutations, streams[0])
    null = conditional_mutual_information(permuted)
    null_mean = float(null.mean())
    p_value, reason = _p_value(rows, tables, cmi, null)
    interval = None
    if bootstrap and p_value is not None:
        interval = centred_interval(bootstrap_cmi(rows, bootstrap, streams[1]), cmi - null_mean)

    shuffled = shuffled_tables(rows, _SHUFFLES, streams[2])
    mi = float(mutual_information(tables.sum(0)))
    level = _level(rows, tables, shuffled, min(permutations, _LEVEL_PERMUTATIONS), streams[3])
    return SpecializationResult(
        mi_bits=mi - float(mutual_information(shuffled.sum(1)).mean()),
        mi_given_level_bits=cmi - null_mean,
        mi_given_level_ci=interval,
        p_value=p_value,
        reason=reason,
        null_99=float(np.quantile(null, 1 - ALPHA)) - null_mean,
        cramers_v_given_level=chance_corrected_v(phi2, float(mean_square_contingency(permuted).mean()), largest),
        level_mi_bits=level['corrected'],
        level_p_value=level['p_value'],
        level_cramers_v=level['v'],
        h_size_given_level=float(conditional_entropy(tables)),
        expert_by_size=tables.sum(0),
        expert_by_level=tables.sum(2).T,
        expert_by_size_by_level=tables.transpose(1, 2, 0),
        levels=tuple(rows.levels.tolist()),
        num_objects=rows.num_objects,
        num_images=len(rows.images),
        num_rows=rows.num_rows,
        permutations=permutations,
        raw={
            'mi_bits': mi,
            'mi_given_level_bits': cmi,
            'level_mi_bits': level['raw'],
            'cramers_v_given_level': float(np.sqrt(phi2 / largest)) if largest > 0 else 0.0,
        },
        notes=_notes(rows, tables),
    )


def _p_value(rows: ObjectRows, tables: np.ndarray, cmi: float, null: np.ndarray) -> tuple[float | None, str]:
    """The p-value of I(E;S | level), or None and what the data lack for one."""
    exchanged = np.unique(np.concatenate([slot.images for slot in rows.slots if len(slot.images) > 1] or [[]]))
    if len(exchanged) < MIN_IMAGES:
        return None, (
            f'{len(exchanged)} images have objects where another image has some at the same level; '
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


def _level(
    rows: ObjectRows, tables: np.ndarray, shuffled: np.ndarray, permutations: int, rng: np.random.Generator
) -> dict[str, float | None]:
    """The dependence of the expert on the level."""
    table = tables.sum(2).T  # (E, L)
    chance = shuffled.sum(3).swapaxes(1, 2)
    raw, phi2 = float(mutual_information(table)), float(mean_square_contingency(table[None]))
    mean_phi2 = float(mean_square_contingency(chance[:, None]).mean())
    p_value = None
    if (np.count_nonzero(rows.level_weights(), axis=1) > 1).sum() >= MIN_IMAGES:
        null = mutual_information(level_shifted_tables(rows, permutations, rng))
        p_value, smallest = upper_tail(raw, null)
        if smallest > ALPHA and (table.sum(1) > 0).sum() > 1:
            p_value = None
    return {
        'raw': raw,
        'corrected': raw - float(mutual_information(chance).mean()),
        'p_value': p_value,
        'v': chance_corrected_v(phi2, mean_phi2, largest_contingency(table[None])),
    }


def _notes(rows: ObjectRows, tables: np.ndarray) -> tuple[str, ...]:
    notes = []
    names = size_names(rows.num_sizes)
    empty = [name for name, count in zip(names, tables.sum((0, 1)), strict=True) if count == 0]
    if empty:
        notes.append(f'no object is {" or ".join(empty)}: nothing is said about that size')
    used = np.flatnonzero(tables.sum((0, 2)))
    if len(used) == 1:
        notes.append(f'only expert {used[0]} was used')
    elif not any(slot.varies for slot in rows.slots):
        notes.append('at every level all images use the same expert: the routing is a fixed map of the level')
    single = [str(rows.levels[slot.level]) for slot in rows.slots if len(slot.images) == 1]
    if single:
        levels = ', '.join(dict.fromkeys(single))
        notes.append(
            f'{len(single)} routing rows cannot be exchanged, no other image has objects there (level {levels})'
        )
    return tuple(notes)


class SpecializationMeter:
    """Collects objects batch by batch, then measures: update, compute, reset.

    Args:
        num_experts: E.
        num_sizes: S.
        **options: passed on to :func:`measure_specialization`: permutations, bootstrap, seed.

    Example:
        >>> meter = SpecializationMeter(num_experts=4)
        >>> meter.update(image_ids, levels, experts, sizes)
        >>> print(meter.compute())
    """

    _NAMES = ('image_ids', 'levels', 'experts', 'sizes', 'patches', 'weights')

    def __init__(self, num_experts: int, num_sizes: int = 3, **options) -> None:
        self.num_experts = num_experts
        self.num_sizes = num_sizes
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Forgets all objects."""
        self._batches: list[dict[str, np.ndarray]] = []

    def update(
        self,
        image_ids: ArrayLike,
        levels: ArrayLike,
        experts: ArrayLike,
        sizes: ArrayLike,
        patches: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> None:
        """Adds objects; arguments as for :func:`measure_specialization`. A batch without objects is skipped.

        Raises:
            ValueError: ``patches`` or ``weights`` come with some batches only, or experts change between indices and
                masses.
        """
        values = dict(zip(self._NAMES, (image_ids, levels, experts, sizes, patches, weights), strict=True))
        batch = {name: np.array(value) for name, value in values.items() if value is not None}
        if batch['image_ids'].size == 0:
            return
        if self._batches:
            first = self._batches[0]
            if batch.keys() != first.keys():
                raise ValueError(f'the first batch gave {", ".join(first)}; this one {", ".join(batch)}')
            if batch['experts'].ndim != first['experts'].ndim:
                raise ValueError('experts must be indices in every batch, or masses in every batch')
        self._batches.append(batch)

    def compute(self) -> SpecializationResult:
        """Measures all objects so far; the meter keeps them.

        Raises:
            DataError: there are none, or all are of one size.
        """
        if not self._batches:
            raise DataError('no objects to measure: update() has had none')
        arrays = {name: np.concatenate([batch[name] for batch in self._batches]) for name in self._batches[0]}
        return measure_specialization(**arrays, num_experts=self.num_experts, num_sizes=self.num_sizes, **self.options)
