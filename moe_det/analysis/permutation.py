"""Null distributions: what tables look like when routing is independent of size, or of the level.

All objects of a routing row share its expert, so objects are not independent and a chi-square on objects finds
specialisation everywhere. What may be exchanged are rows: between images, within a level and patch position, because
then every level keeps its objects and its rows, and only which image's decision meets which image's objects changes.

One image's rows may agree across levels and patches (a gate that reads brightness), and so may its sizes (the scale of
the scene). Permuting each level on its own would tear both apart and understate the spread of the statistic, so all
rows of an image travel together as far as possible. It is not always possible: images lack objects, hence comparable
rows, at some levels. See :func:`permuted_tables`.

Rows are exchanged only between rows with like numbers of objects (the same octave). An expert that gets the few crowded
rows has its sizes from few images; exchanged freely, it would get them from many small rows, and the null would be too
narrow for any gate that follows crowding. Images that belong together (frames of a video) travel as one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import rankdata

from .rows import ObjectRows, octaves

BLOCK = 10  # images of like levels that are exchanged with each other
_CHUNK = 4_000_000  # array elements per chunk: about 150 MB at the peak


def permuted_tables(rows: ObjectRows, permutations: int, rng: np.random.Generator) -> np.ndarray:
    """Tables under the null that, given level and patch position, an image's routing does not depend on its sizes.

    Each permutation draws one random order of the images, and every image requests the rows of another image at all of
    its levels. Where that image has objects at the level too, its row is requested. Where it has none, the requested
    row is drawn from the images that have one and chose the same expert at the nearest level that both share (a hot
    deck): rows of empty levels are not comparable, since a gate sees whether objects are there. At each level the rows
    that are really there are then handed out, among rows with like numbers of objects, in the order of the requested
    rows (by top expert, then by its mass). So each stratum of a level sees a uniformly random arrangement of its own
    rows, as a permutation within it would give, and the dependence between an image's levels is kept: exactly if all
    images have as many objects at all levels, else closely. Images of one group request rows of images of one other
    group.

    Where every image has one expert at all its levels, as with one decision per image, there is nothing to draw by
    level: each image gets the expert of its partner. Partners are images with like numbers of objects on like levels.

    Args:
        rows: the observed rows.
        permutations: P.
        rng: source of randomness.

    Returns:
        (P, L, E, S) tables.
    """
    if rows.one_decision_per_image:
        return _exchanged_images(rows, permutations, rng)
    fixed = np.zeros((len(rows.levels), rows.num_experts, rows.num_sizes))
    moving = []
    for index, slot in enumerate(rows.slots):
        if slot.varies:
            top = slot.masses.argmax(1)
            order = np.lexsort((slot.masses.max(1), top, slot.strata))
            first = np.unique(slot.strata, return_inverse=True)[1] * len(rows.images)
            moving.append((index, slot.level, slot.images, slot.counts, slot.masses[order], first))
        else:
            fixed[slot.level] += slot.masses.T @ slot.counts
    tables = np.broadcast_to(fixed, (permutations, *fixed.shape)).copy()
    if not moving:
        return tables

    num_images = len(rows.images)
    partners_of = _Partners(rows)
    wishes = _Wishes(rows)
    for start, stop in _chunks(permutations, num_images):
        ranks = wishes.ranks(rng)
        partners = partners_of.draw(stop - start, rng)
        for index, level, images, counts, masses, first in moving:
            wanted = ranks[index][partners[:, images]]
            if first.any():
                kind = np.uint16 if int(first.max()) + num_images < 2**16 else np.int32
                wanted = wanted.astype(kind) + first.astype(kind)
            # numpy's stable sort of 16-bit keys is a radix sort, the fastest one there is
            order = wanted.argsort(axis=1, kind='stable' if wanted.itemsize == 2 else None)
            for size in range(rows.num_sizes):
                tables[start:stop, level, :, size] += np.take(counts[:, size], order) @ masses
    return tables


def _exchanged_images(rows: ObjectRows, permutations: int, rng: np.random.Generator) -> np.ndarray:
    """(P, L, E, S) tables when every image gets the one expert of its partner."""
    masses = np.zeros((len(rows.images), rows.num_experts))
    counts = np.zeros((len(rows.images), len(rows.levels), rows.num_sizes))
    for slot in rows.slots:
        masses[slot.images] = slot.masses
        counts[slot.images, slot.level] = slot.counts
    flat = counts.reshape(len(rows.images), -1)
    tables = np.empty((permutations, rows.num_experts, flat.shape[1]))
    partners_of = _Partners(rows)
    for start, stop in _chunks(permutations, len(rows.images)):
        partners = partners_of.draw(stop - start, rng)
        for expert in range(rows.num_experts):
            tables[start:stop, expert] = np.take(masses[:, expert], partners) @ flat
    shape = permutations, rows.num_experts, len(rows.levels), rows.num_sizes
    return tables.reshape(shape).swapaxes(1, 2)


class _Partners:
    """Draws for every image the image whose rows it requests."""

    def __init__(self, rows: ObjectRows) -> None:
        self.groups = rows.groups
        self.num_groups = rows.num_groups
        self.members = np.argsort(rows.groups, kind='stable')
        self.length = np.bincount(rows.groups, minlength=self.num_groups)
        self.first = np.cumsum(self.length) - self.length
        place = np.empty(len(rows.groups), dtype=np.int64)
        place[self.members] = np.arange(len(rows.groups)) - np.repeat(self.first, self.length)
        self.place = place  # of an image inside its group
        self.strata = np.unique(_like_images(rows), return_inverse=True)[1]

    def draw(self, permutations: int, rng: np.random.Generator) -> np.ndarray:
        """(permutations, N) images; those of a group are asked of one group, in their order."""
        # a random order inside each stratum: sorting uniform keys that begin with the stratum
        order = np.argsort(rng.random((permutations, self.num_groups)) + self.strata, axis=1)
        partners = np.empty_like(order)
        partners[:, np.argsort(self.strata, kind='stable')] = order
        if self.num_groups == len(self.groups):
            return partners[:, self.groups]
        group = partners[:, self.groups]
        return self.members[self.first[group] + self.place % self.length[group]]


def _like_images(rows: ObjectRows) -> np.ndarray:
    """(G,) stratum of each group: like numbers of objects per image, and, among those, like levels of its objects.

    What is exchanged is thereby given the levels of the image as a whole: a gate that reads the scale of the scene
    knows which levels have objects, and must not look as if it knew more.
    """
    length = np.bincount(rows.groups, minlength=rows.num_groups)
    of_level = np.stack([np.bincount(rows.groups, column, rows.num_groups) for column in rows.level_weights().T], 1)
    total = of_level.sum(1)
    mean_level = of_level @ np.arange(of_level.shape[1]) / total
    stratum = np.zeros(rows.num_groups, dtype=np.int64)
    used = 0
    count = octaves(total / length)
    for octave in np.unique(count):
        members = np.flatnonzero(count == octave)
        blocks = max(1, len(members) // BLOCK)
        # images of equal levels stay together: the order of images must not matter
        rank = rankdata(mean_level[members].round(9), method='min').astype(np.int64) - 1
        stratum[members] = used + rank * blocks // len(members)
        used += blocks
    return stratum


class _Wishes:
    """Which row each image stands for at each slot, even where it has no objects."""

    def __init__(self, rows: ObjectRows) -> None:
        shape = len(rows.images), len(rows.slots)
        self.occupied = np.zeros(shape, dtype=bool)
        self.top = np.zeros(shape, dtype=np.int64)
        self.mass = np.zeros(shape)
        for index, slot in enumerate(rows.slots):
            self.occupied[slot.images, index] = True
            self.top[slot.images, index] = slot.masses.argmax(1)
            self.mass[slot.images, index] = slot.masses.max(1)
        self.varies = [slot.varies for slot in rows.slots]
        # nearest level first; among the patches of one level in their order
        levels = np.array([slot.level for slot in rows.slots])
        self.nearest = [np.argsort(np.abs(levels - level), kind='stable') for level in levels]
        self.num_experts = rows.num_experts

    def ranks(self, rng: np.random.Generator) -> dict[int, np.ndarray]:
        """Per slot (N,) the images, ranked by the row they stand for; ties and donors are redrawn each time."""
        num_images = len(self.occupied)
        key = np.uint16 if num_images < 2**16 else np.int32
        ranks = {}
        for slot in np.flatnonzero(self.varies):
            donor = self._donors(slot, rng)
            order = np.lexsort((rng.random(num_images), self.mass[donor, slot], self.top[donor, slot]))
            ranks[slot] = np.empty(num_images, dtype=key)
            ranks[slot][order] = np.arange(num_images, dtype=key)
        return ranks

    def _donors(self, slot: int, rng: np.random.Generator) -> np.ndarray:
        occupied = self.occupied[:, slot]
        donor = np.arange(len(occupied))
        todo = np.flatnonzero(~occupied)
        for other in self.nearest[slot]:
            if other == slot or len(todo) == 0:
                continue
            givers = np.flatnonzero(occupied & self.occupied[:, other])
            givers = givers[np.argsort(self.top[givers, other], kind='stable')]
            available = np.bincount(self.top[givers, other], minlength=self.num_experts)
            expert = self.top[todo, other]
            served = self.occupied[todo, other] & (available[expert] > 0)
            expert = expert[served]
            first = (np.cumsum(available) - available)[expert]
            donor[todo[served]] = givers[first + rng.integers(available[expert])]
            todo = todo[~served]
        if len(todo):
            donor[todo] = rng.choice(np.flatnonzero(occupied), len(todo))
        return donor


def shuffled_tables(rows: ObjectRows, shuffles: int, rng: np.random.Generator) -> np.ndarray:
    """Tables when rows are exchanged freely, between levels too: the chance level of I(E;S) and of I(E;level).

    Returns:
        (shuffles, L, E, S) tables.
    """
    masses = np.concatenate([slot.masses for slot in rows.slots])
    counts = np.concatenate([slot.counts for slot in rows.slots])
    level = np.repeat([slot.level for slot in rows.slots], [len(slot.images) for slot in rows.slots])
    num_levels = len(rows.levels)
    spread = np.zeros((len(masses), num_levels, rows.num_sizes))
    spread[np.arange(len(masses)), level] = counts
    flat = spread.reshape(len(masses), -1)
    tables = np.empty((shuffles, rows.num_experts, flat.shape[1]))
    for table in tables:
        table[:] = masses[rng.permutation(len(masses))].T @ flat
    return tables.reshape(shuffles, rows.num_experts, num_levels, rows.num_sizes).swapaxes(1, 2)


def level_shifted_tables(rows: ObjectRows, permutations: int, rng: np.random.Generator) -> np.ndarray:
    """Expert-by-level tables under the null that an image's routing does not depend on the level.

    The decisions of one image (with patches: its mean decision at each level) are shifted cyclically over the levels
    where it has objects. Random shifts form a group, so the test is exact whatever the images have in common.

    Returns:
        (permutations, E, L) tables.
    """
    weight = rows.level_weights()
    shape = weight.shape
    mass = np.zeros((*shape, rows.num_experts))
    for slot in rows.slots:
        mass[slot.images, slot.level] += slot.masses * slot.counts.sum(1)[:, None]
    image, level = np.nonzero(weight)
    mass = mass[image, level] / weight[image, level][:, None]
    weight = weight[image, level]
    length = np.bincount(image, minlength=shape[0])
    first = (np.cumsum(length) - length)[image]
    position = np.arange(len(image)) - first

    by_level = [np.flatnonzero(level == index) for index in range(shape[1])]
    tables = np.empty((permutations, rows.num_experts, shape[1]))
    for start, stop in _chunks(permutations, len(image)):
        # the images of a group are shifted alike
        turn = rng.random((stop - start, rows.num_groups))[:, rows.groups[image]]
        shift = (turn * length[image]).astype(np.int64)
        source = first + (position + shift) % length[image]
        for index, cells in enumerate(by_level):
            for expert in range(rows.num_experts):
                tables[start:stop, expert, index] = np.take(mass[:, expert], source[:, cells]) @ weight[cells]
    return tables


def upper_tail(observed: float, null: np.ndarray) -> tuple[float, float]:
    """The permutation p-value, and the smallest one that these permutations could have given.

    Args:
        observed: the statistic of the data.
        null: (P,) the statistic of permuted data.

    Returns:
        (1 + number of null values >= observed) / (1 + P), which is never 0; and what the most extreme arrangement seen,
        observed or permuted, would have got, which is large when few distinct arrangements exist.
    """
    slack = 1e-9 * max(1.0, abs(observed))  # sums of one table in another order must count as ties
    p_value = float((1 + np.sum(null >= observed - slack)) / (1 + len(null)))
    if null.max() <= observed + slack:
        return p_value, p_value
    # the arrangement itself is one of those counted
    return p_value, float(np.sum(null >= null.max() - slack) / (1 + len(null)))


def _chunks(total: int, width: int) -> Iterator[tuple[int, int]]:
    step = min(max(1, _CHUNK // max(width, 1)), 500)  # donors are redrawn for each chunk: let there be several
    for start in range(0, total, step):
        yield start, min(start + step, total)
