"""Turns painted scenes into a COCO-format data set on disk."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from .shapes_render import Instance

IDS_PER_IMAGE = 100  # annotation ids are image id * this + position, so they do not depend on other images


def annotations_of(image_id: int, instances: list[Instance]) -> list[dict]:
    """COCO annotations of one image.

    Args:
        image_id: the image's id.
        instances: its regions.

    Returns:
        Dicts with compressed RLE ``segmentation`` (uncompressed for crowds, as in COCO), mask ``area`` in pixels and
        ``bbox`` (x, y, width, height) tight around the visible mask.
    """
    annotations = []
    for position, instance in enumerate(instances):
        encoded = coco_mask.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
        counts = _run_lengths(instance.mask) if instance.crowd else encoded['counts'].decode('ascii')
        annotations.append(
            {
                'id': image_id * IDS_PER_IMAGE + position,
                'image_id': image_id,
                'category_id': instance.category + 1,
                'bbox': [float(value) for value in coco_mask.toBbox(encoded)],
                'area': float(coco_mask.area(encoded)),
                'iscrowd': int(instance.crowd),
                'segmentation': {'size': [int(side) for side in encoded['size']], 'counts': counts},
            }
        )
    return annotations


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Uncompressed RLE: lengths of alternating runs in column order, the first of zeros."""
    flat = np.concatenate([[0], mask.ravel(order='F').astype(np.int8), [0]])
    changes = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    if changes.size and changes[-1] == mask.size:
        runs = runs[:-1]
    return [int(run) for run in runs]
