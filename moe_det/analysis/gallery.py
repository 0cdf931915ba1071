"""Chooses the images and objects that stand for each expert, and images that show the routing level by level."""

from __future__ import annotations

import numpy as np

from .ground_truth import GroundTruth
from .sizes import SIZE_NAMES
from .units import Unit

IMAGES_PER_EXPERT = 4
OBJECTS_PER_EXPERT = 6
EXAMPLES = 4


def favourite_images(
    weights: np.ndarray, probs: np.ndarray, image_ids: np.ndarray, expert: int
) -> list[tuple[int, float]]:
    """The images that give an expert the largest mean weight over their rows, of equal ones by its mean probability.

    Args:
        weights: (R, E) mixture weights.
        probs: (R, E) gate probabilities.
        image_ids: (R,) position of each row's image.
        expert: which.

    Returns:
        Position of the image and mean weight, the largest first, without images that never use it.
    """
    images, inverse = np.unique(image_ids, return_inverse=True)
    mean, likely = (np.bincount(inverse, weights=v[:, expert]) / np.bincount(inverse) for v in (weights, probs))
    order = np.lexsort((-likely, -mean))[:IMAGES_PER_EXPERT]
    return [(int(images[i]), float(mean[i])) for i in order if mean[i] > 0]


def favourite_objects(unit: Unit, probs: np.ndarray, expert: int) -> list[int]:
    """Entries of a unit that lean most on an expert, at most one of each image.

    Args:
        unit: entries.
        probs: (R, E) gate probabilities of all rows, which decide between equal weights.
        expert: which.

    Returns:
        Positions in the unit, the largest weight first.
    """
    order = np.lexsort((-probs[unit.rows, expert], -unit.experts[:, expert]))
    chosen: list[int] = []
    seen = set()
    for i in order:
        if unit.experts[i, expert] <= 0 or len(chosen) == OBJECTS_PER_EXPERT:
            break
        if unit.image_ids[i] not in seen:
            seen.add(unit.image_ids[i])
            chosen.append(int(i))
    return chosen


def example_images(ground_truth: GroundTruth) -> list[int]:
    """Positions of images whose objects differ most in size: the most sizes, then nearest to half a dozen objects."""
    objects = ground_truth.objects
    ranked = []
    for image in range(len(ground_truth.image_ids)):
        at = objects.of_image(image)
        ranked.append((-len(np.unique(objects.sizes[at])), abs(len(at) - 6), image))
    return [image for *_, image in sorted(ranked)[:EXAMPLES]]


def object_entry(
    ground_truth: GroundTruth, unit: Unit, position: int, expert: int, by_level: bool, slots: int = 1
) -> dict:
    """What the report says of one top-activating object, with the ids of the annotation file.

    With shards a weight is a part of its shard's weights.
    The caller, which has the images, adds file name and picture.
    """
    objects = ground_truth.objects
    at = unit.objects[position]
    return {
        'annotation_id': ground_truth.annotation_ids[at],
        'image_id': ground_truth.image_ids[objects.image_ids[at]],
        'bbox': objects.boxes[at].tolist(),
        'area': float(objects.areas[at]),
        'size': SIZE_NAMES[objects.sizes[at]],
        'category': ground_truth.category_names[objects.categories[at]],
        'level': int(unit.levels[position]) if by_level else None,
        'weight': float(unit.experts[position, expert]) * slots,
    }
