"""Whose decision a routing row takes in the swap test: another image's at the same level, or its own image's elsewhere.

Letters: N images, R routing rows of a layer. Images are numbered from 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

NO_DONOR = -1


def donors_of(
    counts: np.ndarray,
    rng: np.random.Generator,
    shapes: np.ndarray | None = None,
    groups: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """Draws for every image another one to take the decisions of, such that each image is taken from once.

    Images exchange with images of like object count (equal ``floor(log2(1 + count))``), for decisions follow crowding.
    A class of counts in which not every image can have a donor joins the next one.

    Args:
        counts: (N,) objects of each image.
        rng: of the draw.
        shapes: (N,) numbers; images of different shape have different rows and cannot exchange. None: all are alike.
        groups: (N,) what each image belongs to; a donor belongs to another group. None: every image is its own.

    Returns:
        (N,) donor of each image, ``NO_DONOR`` where there is none: images alone in their shape, and, where a group
        holds more than half of a shape's images, as many of its images as find no partner.
    """
    octave = np.floor(np.log2(1 + np.asarray(counts))).astype(np.int64)
    shape = np.zeros(len(octave), dtype=np.int64) if shapes is None else np.asarray(shapes)
    numbers: dict[Hashable, int] = {}
    members = range(len(octave)) if groups is None else groups
    group = np.array([numbers.setdefault(member, len(numbers)) for member in members], dtype=np.int64)
    donor = np.full(len(octave), NO_DONOR, dtype=np.int64)
    for alike in np.unique(shape):
        images = np.flatnonzero(shape == alike)
        classes = [images[octave[images] == value] for value in np.unique(octave[images])]
        for stratum in _joined(classes, group):
            stratum = _with_partners(stratum, group, rng)
            donor[stratum] = _exchange(stratum, group, rng)
    return donor


def _largest(stratum: np.ndarray, group: np.ndarray) -> int:
    """Images of the largest group in a stratum."""
    return int(np.unique(group[stratum], return_counts=True)[1].max(initial=0))


def _joined(classes: list[np.ndarray], group: np.ndarray) -> list[np.ndarray]:
    """Joins neighbours until every image can have a donor of another group, or one class is left."""
    classes = list(classes)
    while len(classes) > 1:
        lacking = [i for i, members in enumerate(classes) if 2 * _largest(members, group) > len(members)]
        if not lacking:
            break
        at = min(lacking[0], len(classes) - 2)
        classes[at : at + 2] = [np.concatenate(classes[at : at + 2])]
    return classes


def _with_partners(stratum: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The stratum without the images of a group that is larger than all others together."""
    numbers, counts = np.unique(group[stratum], return_counts=True)
    others = len(stratum) - counts.max()
    if counts.max() <= others:
        return stratum
    largest = group[stratum] == numbers[counts.argmax()]
    kept = rng.permutation(stratum[largest])[:others]
    return np.concatenate([stratum[~largest], kept])


def _exchange(stratum: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random donor for each image of a stratum in which no group holds more than half."""
    count = len(stratum)
    if not count:
        return stratum
    # groups in random order, each in one piece: a shift by the largest group's size leads out of every group
    shuffled = rng.permutation(count)
    rank = rng.permutation(int(group.max()) + 1)[group[stratum]]
    order = shuffled[np.argsort(rank[shuffled], kind='stable')]
    shift = _largest(stratum, group)
    giver = np.empty(count, dtype=np.int64)
    giver[order] = np.roll(order, -shift)
    if shift > 1:  # the shift alone would send whole groups to one other group
        own = group[stratum]
        for a, b in rng.integers(0, count, (10 * count, 2)):
            if own[giver[a]] != own[b] and own[giver[b]] != own[a]:
                giver[a], giver[b] = giver[b], giver[a]
    return stratum[giver]


def swapped_rows(image_ids: np.ndarray, levels: np.ndarray, patches: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """The row whose decision each row takes when images take those of their donors, at the same level and patch.

    Args:
        image_ids: (R,) image of each row.
        levels: (R,) level of each row.
        patches: (R,) patch of each row.
        donor: (N,) from :func:`donors_of`.

    Returns:
        (R,) row numbers; a row's own where its image has no donor.

    Raises:
        ValueError: a donor has no row at that level and patch.
    """
    giver = np.where(donor[image_ids] == NO_DONOR, image_ids, donor[image_ids])
    return _rows_at(image_ids, levels, patches, giver, levels, patches)


def swapped_regions(image_ids: np.ndarray, levels: np.ndarray, patches: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """The row whose decision each region takes when images take those of their donors.

    Images have unequal numbers of regions at a level: each takes that of the donor's region at the same fraction of the
    level's list, and its own where the donor has none at the level.

    Args:
        image_ids: (R,) image of each row.
        levels: (R,) level of each row.
        patches: (R,) number of the region in its image.
        donor: (N,) from :func:`donors_of`.

    Returns:
        (R,) row numbers.
    """
    span = int(levels.max()) + 1
    order = np.lexsort((patches, levels, image_ids))
    count = np.bincount(image_ids * span + levels, minlength=len(donor) * span)  # of each image and level
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    own = image_ids * span + levels
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - first[own[order]]
    other = np.where(donor[image_ids] == NO_DONOR, image_ids, donor[image_ids]) * span + levels
    other = np.where(count[other] > 0, other, own)
    return order[first[other] + rank * count[other] // count[own]]


def level_shifted_rows(
    image_ids: np.ndarray, levels: np.ndarray, patches: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The row whose decision each row takes when the levels of every image are shifted in a circle.

    The shift is drawn for each image and is never none where the image has several levels. Where levels are cut into
    different numbers of patches, a row takes the patch at the same fraction of the list.

    Args:
        image_ids: (R,) image of each row.
        levels: (R,) level of each row; an image has all levels from 0 to its highest.
        patches: (R,) patch of each row.
        rng: of the shifts.

    Returns:
        (R,) row numbers.
    """
    count = int(image_ids.max()) + 1
    heights = np.zeros(count, dtype=np.int64)
    np.maximum.at(heights, image_ids, levels + 1)
    shift = np.where(heights > 1, 1 + (rng.random(count) * (heights - 1)).astype(np.int64), 0)
    other = (levels + shift[image_ids]) % heights[image_ids]
    cells = np.zeros((count, int(levels.max()) + 1), dtype=np.int64)
    np.maximum.at(cells, (image_ids, levels), patches + 1)
    cell = patches * cells[image_ids, other] // cells[image_ids, levels]
    return _rows_at(image_ids, levels, patches, image_ids, other, cell)


def _rows_at(image_ids: np.ndarray, levels: np.ndarray, patches: np.ndarray, *wanted: np.ndarray) -> np.ndarray:
    """(R,) rows of the table at the wanted image, level and patch."""
    own = zip(image_ids.tolist(), levels.tolist(), patches.tolist(), strict=True)
    row_of = {place: row for row, place in enumerate(own)}
    found = np.empty(len(image_ids), dtype=np.int64)
    for row, place in enumerate(zip(*(column.tolist() for column in wanted), strict=True)):
        if place not in row_of:
            raise ValueError(
                f'image {place[0]} has no row at level {place[1]}, patch {place[2]}: images with different rows cannot '
                'exchange decisions'
            )
        found[row] = row_of[place]
    return found
