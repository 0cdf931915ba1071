"""From arrays with one entry per object to routing rows: the units that are permuted and resampled."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError

Ids = Sequence[Hashable] | np.ndarray  # integers of any size or strings
ROW_TOLERANCE = 1e-4  # masses of one row come from one gate output: they differ by storage precision only


@dataclass(frozen=True)
class Slot:
    """The rows of one level and patch position, one per image that has objects there.

    Attributes:
        level: index into :attr:`ObjectRows.levels`.
        images: (A,) indices into :attr:`ObjectRows.images`, ascending.
        counts: (A, S) summed weights of the row's objects by size.
        masses: (A, E) expert masses of the rows; each sums to 1.
        strata: (A,) octave of the row's number of objects; rows are exchanged inside an octave only.
    """

    level: int
    images: np.ndarray
    counts: np.ndarray
    masses: np.ndarray
    strata: np.ndarray

    @property
    def varies(self) -> bool:
        """Whether an exchange of rows between images can change anything."""
        return any(
            np.ptp(self.masses[self.strata == stratum], axis=0).max() > ROW_TOLERANCE
            for stratum in np.unique(self.strata)
        )

    @property
    def exchanged(self) -> np.ndarray:
        """Images whose row can be exchanged with another image's."""
        _, stratum, size = np.unique(self.strata, return_inverse=True, return_counts=True)
        return self.images[size[stratum] > 1]


@dataclass(frozen=True)
class ObjectRows:
    """Objects, gathered by routing row.

    Attributes:
        images: (N,) distinct image ids.
        groups: (N,) independent unit that each image belongs to, 0..G-1: the image itself unless images were grouped.
        levels: (L,) distinct levels, ascending.
        slots: one per (level, patch position) that holds objects.
        patches: patch position of each slot.
        num_objects: entries that were gathered.
        num_experts: E.
        num_sizes: S.
        expert_slots: see :func:`~moe_det.analysis.measure_specialization`.
    """

    images: np.ndarray
    groups: np.ndarray
    levels: np.ndarray
    slots: tuple[Slot, ...]
    patches: tuple[int, ...]
    num_objects: int
    num_experts: int
    num_sizes: int
    expert_slots: int = 1

    @property
    def num_groups(self) -> int:
        """Independent units: images, or groups of images."""
        return int(self.groups.max()) + 1

    @property
    def exchanged_groups(self) -> int:
        """Independent units with a row that can be exchanged."""
        images = np.concatenate([slot.exchanged for slot in self.slots])
        return len(np.unique(self.groups[images]))

    @property
    def one_decision_per_image(self) -> bool:
        """Whether every image has one expert at all its levels, and levels have no patches."""
        if any(self.patches):
            return False
        low = np.full((len(self.images), self.num_experts), np.inf)
        high = -low
        for slot in self.slots:
            low[slot.images] = np.minimum(low[slot.images], slot.masses)
            high[slot.images] = np.maximum(high[slot.images], slot.masses)
        return bool((high - low).max() <= ROW_TOLERANCE)

    @property
    def num_rows(self) -> int:
        """Routing rows that hold objects."""
        return sum(len(slot.images) for slot in self.slots)

    def level_weights(self) -> np.ndarray:
        """(N, L) summed weights of each image's objects at each level."""
        weights = np.zeros((len(self.images), len(self.levels)))
        for slot in self.slots:
            weights[slot.images, slot.level] += slot.counts.sum(1)
        return weights

    def image_tables(self) -> np.ndarray:
        """(N, L, E, S) what each image adds to the table of the levels."""
        tables = np.zeros((len(self.images), len(self.levels), self.num_experts, self.num_sizes))
        for slot in self.slots:  # an image occurs once in a slot, so += loses nothing
            tables[slot.images, slot.level] += slot.masses[:, :, None] * slot.counts[:, None, :]
        return tables


def gather_rows(
    image_ids: Ids,
    levels: ArrayLike,
    experts: ArrayLike,
    sizes: ArrayLike,
    *,
    num_experts: int,
    num_sizes: int,
    patches: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    groups: Ids | None = None,
    expert_slots: int = 1,
) -> ObjectRows:
    """Checks the arrays of :func:`~moe_det.analysis.measure_specialization` and gathers objects into routing rows.

    Raises:
        ValueError: an array has a wrong shape, type or range, the expert differs inside one routing row, or an image
            belongs to two groups.
        DataError: there are no objects, or all are of one size.
    """
    if num_experts < 1 or num_sizes < 2:
        raise ValueError(f'expected num_experts >= 1 and num_sizes >= 2, got {num_experts} and {num_sizes}')
    if expert_slots < 1 or num_experts % expert_slots:
        raise ValueError(f'expert_slots={expert_slots}: expected a divisor of num_experts={num_experts}')
    names, image = positions_of('image_ids', image_ids)
    n = len(image)
    if n == 0:
        raise DataError('no objects to measure: image_ids is empty')
    levels = _integers('levels', levels, n)
    sizes = _integers('sizes', sizes, n, num_sizes)
    patches = np.zeros(n, dtype=np.int64) if patches is None else _integers('patches', patches, n)
    masses = _masses(experts, n, num_experts)
    weights = np.ones(n) if weights is None else _weights(weights, n)

    populated = np.bincount(sizes, weights, num_sizes) > 0
    if populated.sum() < 2:
        raise DataError(
            f'all {n} objects are of size {sizes[0]} of 0..{num_sizes - 1}: the other size bins are empty, '
            'and specialisation in size needs objects of two sizes'
        )

    level_names, level = np.unique(levels, return_inverse=True)
    places, place = np.unique(np.stack([level, patches], 1), axis=0, return_inverse=True)
    keys, first, row = np.unique(place.ravel() * len(names) + image, return_index=True, return_inverse=True)
    wrong = np.abs(masses - masses[first][row]).max(1) > ROW_TOLERANCE
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f'the expert must be the same for all objects of one routing row, but differs inside image '
            f'{names[image[at]]!s}, level {levels[at]}, patch {patches[at]} (entries {first[row[at]]} and {at}). '
            'With routing per patch give patches=; an object over several rows is one entry per row, with weights='
        )
    counts = np.bincount(row * num_sizes + sizes, weights, len(keys) * num_sizes).reshape(-1, num_sizes)
    strata = octaves(counts.sum(1))
    row_place, row_image = np.divmod(keys, len(names))
    found = []
    for index, (slot_level, _) in enumerate(places):
        rows = row_place == index
        found.append(Slot(int(slot_level), row_image[rows], counts[rows], masses[first[rows]], strata[rows]))
    units = np.arange(len(names)) if groups is None else _groups(groups, names, image)
    patch_of_slot = tuple(places[:, 1].tolist())
    return ObjectRows(names, units, level_names, tuple(found), patch_of_slot, n, num_experts, num_sizes, expert_slots)


def octaves(counts: np.ndarray) -> np.ndarray:
    """Stratum of each count: 1, 2 to 3, 4 to 7, ... objects; parts of an object, as weights give them, share one."""
    return np.floor(np.log2(np.maximum(counts, 0.5) + 1e-9)).astype(np.int64)


def positions_of(name: str, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """Numbers ids of any kind (integers of any size, strings), without ever comparing them as numbers.

    Args:
        name: of the argument, for messages.
        ids: (n,) ids.

    Returns:
        (N,) the distinct ids, numbers before strings, each ascending, as objects, and (n,) the position of each entry.

    Raises:
        ValueError: not one id per entry, or ids that are floats, in which different ids may have become one.
    """
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1:
            raise ValueError(f'{name} must have one entry per object, got shape {ids.shape}')
        if ids.dtype.kind == 'f' and ids.size:
            raise ValueError(f'{name} are {ids.dtype}: large ids become equal as floats; give integers or strings')
        if ids.dtype.kind in 'iubU':  # as fast as arrays are
            found, inverse = np.unique(ids, return_inverse=True)
            return found.astype(object), inverse.ravel()
    numbers: dict[Hashable, int] = {}
    position = np.empty(len(ids), dtype=np.int64)
    for at, value in enumerate(ids):
        if isinstance(value, (float, np.floating)):
            raise ValueError(f'{name}[{at}] is {value!r}: expected an integer or a string, floats make large ids equal')
        if isinstance(value, (list, dict, set, np.ndarray)):
            raise ValueError(f'{name} must have one entry per object, got {value!r}')
        position[at] = numbers.setdefault(value, len(numbers))
    order = sorted(numbers, key=lambda value: (isinstance(value, str), value))
    names = np.empty(len(numbers), dtype=object)
    names[:] = order
    rank = np.empty(len(numbers), dtype=np.int64)
    rank[[numbers[value] for value in order]] = np.arange(len(order))
    return names, rank[position]


def _groups(groups: Ids, names: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(N,) group of each image."""
    _, group = positions_of('groups', groups)
    if len(group) != len(image):
        raise ValueError(f'groups must have one entry per object: expected {len(image)}, got {len(group)}')
    of_image = np.empty(len(names), dtype=np.int64)
    of_image[image] = group
    wrong = of_image[image] != group
    if wrong.any():
        raise ValueError(f'image {names[image[np.argmax(wrong)]]!s} belongs to two groups')
    return of_image


def _integers(name: str, values: ArrayLike, n: int, upper: int | None = None) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (n,):
        raise ValueError(f'{name} must have one entry per object: expected shape ({n},), got {values.shape}')
    if values.dtype.kind not in 'iu':
        raise ValueError(f'{name} must be integers, got {values.dtype}')
    values = values.astype(np.int64)
    outside = values < 0 if upper is None else (values < 0) | (values >= upper)
    if outside.any():
        at = int(np.argmax(outside))
        expected = '>= 0' if upper is None else f'in 0..{upper - 1}'
        raise ValueError(f'{name}[{at}] is {values[at]}, expected a value {expected}')
    return values


def _masses(experts: ArrayLike, n: int, num_experts: int) -> np.ndarray:
    experts = np.asarray(experts)
    if experts.ndim != 2:
        return np.eye(num_experts)[_integers('experts', experts, n, num_experts)]
    if experts.shape != (n, num_experts):
        raise ValueError(f'expert masses must have shape ({n}, {num_experts}), got {experts.shape}')
    masses = experts.astype(float)
    total = masses.sum(1)
    wrong = ~(np.isfinite(masses).all(1) & (masses >= 0).all(1) & (np.abs(total - 1) < 1e-3))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f'experts[{at}] is {masses[at].tolist()}, expected masses >= 0 that sum to 1')
    return masses / total[:, None]


def _weights(weights: ArrayLike, n: int) -> np.ndarray:
    weights = np.asarray(weights, dtype=float)
    if weights.shape != (n,):
        raise ValueError(f'weights must have one entry per object: expected shape ({n},), got {weights.shape}')
    wrong = ~(np.isfinite(weights) & (weights > 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f'weights[{at}] is {weights[at]}, expected a positive number')
    return weights
