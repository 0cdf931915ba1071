"""Chooses the images and objects that stand for each expert, and images that show the routing level by level."""

from __future__ import annotations

import numpy as np

from .ground_truth import SIZE_NAMES, GroundTruth
from .units import Unit

IMAGES_PER_EXPERT = 4
OBJECTS_PER_EXPERT = 6
EXAMPLES = 4


def favourite_images(weights: np.ndarray, image_ids: np.ndarray, expert: int) -> list[tuple[int, float]]:
    """The images that give an expert the largest mean weight over their rows.

    Args:
        weights: (R, E) mixture weights.
        image_ids: (R,) image of each row.
        expert: which.

    Returns:
        Image id and mean weight, the largest first, without images that never use it.
    """
    images, inverse = np.unique(image_ids, return_inverse=True)
    mean = np.bincount(inverse, weights=weights[:, expert]) / np.bincount(inverse)
    order = np.argsort(-mean, kind='stable')[:IMAGES_PER_EXPERT]
    return [(int(images[i]), float(mean[i])) for i in order if mean[i] > 0]


def favourite_objects(unit: Unit, expert: int) -> list[int]:
    """Entries of a unit that lean most on an expert, at most one of each image and, while there are, of all sizes.

    Args:
        unit: entries.
        expert: which.

    Returns:
        Positions in the unit, the largest weight first.
    """
    order = np.argsort(-unit.experts[:, expert], kind='stable')
    chosen, seen = [], set()
    for i in order:
        if unit.experts[i, expert] <= 0 or len(chosen) == OBJECTS_PER_EXPERT:
            break
        if unit.image_ids[i] not in seen:
            seen.add(unit.image_ids[i])
            chosen.append(int(i))
    return chosen


def example_images(ground_truth: GroundTruth) -> list[int]:
    """Images whose objects differ most in size: those with the most sizes, then the most objects up to a dozen."""
    objects = ground_truth.objects
    ranked = []
    for image_id in ground_truth.image_ids:
        at = objects.of_image(image_id)
        count = len(at)
        ranked.append((-len(np.unique(objects.sizes[at])), abs(count - 6), image_id))
    return [image_id for *_, image_id in sorted(ranked)[:EXAMPLES]]


def object_entry(ground_truth: GroundTruth, unit: Unit, position: int, expert: int, by_level: bool) -> dict:
    """What the report says of one favourite object; file name and picture are added by who has the images."""
    objects = ground_truth.objects
    at = unit.objects[position]
    category = ground_truth.coco.cats[int(objects.categories[at])].get('name', str(objects.categories[at]))
    return {
        'annotation_id': int(objects.ids[at]),
        'image_id': int(objects.image_ids[at]),
        'bbox': objects.boxes[at].tolist(),
        'area': float(objects.areas[at]),
        'size': SIZE_NAMES[objects.sizes[at]],
        'category': category,
        'level': int(unit.levels[position]) if by_level else None,
        'weight': float(unit.experts[position, expert]),
    }
