"""COCO's matching, kept detection by detection, and its average precision when images count several times.

Matching an image does not depend on the other images, so that it is done once for all resamples of images; and a
precision only changes where a detection hits an object, so that a resample needs the sums there alone. The rules, and
the results on the images as they are, are those of pycocotools. Letters: N images, n detections, g objects (crowds
included), V views, T IoU thresholds, B resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pycocotools import mask
from pycocotools.cocoeval import Params

MOST_DETECTIONS = 100  # per image and category, COCO's standard
THRESHOLDS, RECALLS = Params(iouType='bbox').iouThrs, Params(iouType='bbox').recThrs


@dataclass(frozen=True)
class Boxes:
    """Objects or detections.

    Attributes:
        images: (g,) or (n,) positions.
        categories: labels.
        boxes: (g, 4) x, y, width, height.
        within: (V, g) or (V, n) whether each belongs to a view, such as the objects of one size. Objects outside are
            ignored, as COCO ignores those of other sizes, and so are detections outside that hit nothing.
    """

    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    within: np.ndarray

    def only(self, numbers: np.ndarray) -> Boxes:
        """Some of them, in this order."""
        return Boxes(self.images[numbers], self.categories[numbers], self.boxes[numbers], self.within[:, numbers])


@dataclass(frozen=True)
class Matches:
    """The detections of one category, the most certain first.

    Attributes:
        images: (n,) positions.
        hits: (V, T, n) whether a detection is matched to an object of the view.
        counted: (V, T, n) whether it counts at all, as a hit or as a false one.
        objects: (V, N) how many objects of the view there are.
    """

    images: np.ndarray
    hits: np.ndarray
    counted: np.ndarray
    objects: np.ndarray


def matches_of(
    objects: Boxes, crowds: np.ndarray, detections: Boxes, scores: np.ndarray, num_images: int
) -> Iterator[Matches]:
    """Matches detections to objects, one category that has objects after the other.

    Args:
        objects: of all categories.
        crowds: (g,) whether an object is a crowd, which any number of detections may hit and which never counts.
        detections: of all categories.
        scores: (n,) of the detections.
        num_images: N.
    """
    for label in np.unique(objects.categories):
        of_label = np.flatnonzero(detections.categories == label)
        # by image, the most certain first
        of_label = of_label[np.lexsort((-scores[of_label], detections.images[of_label]))]
        images = detections.images[of_label]
        of_label = of_label[np.arange(len(images)) - np.searchsorted(images, images) < MOST_DETECTIONS]
        found, truths = detections.only(of_label), np.flatnonzero(objects.categories == label)
        hits, ignored = _match(objects.only(truths), crowds[truths], found)
        counted = (found.within[:, None] | hits) & ~ignored
        order = np.argsort(-scores[of_label], kind='stable')
        views = objects.within[:, truths] & ~crowds[truths]
        numbers = np.stack([np.bincount(objects.images[truths[view]], minlength=num_images) for view in views])
        yield Matches(found.images[order], hits[..., order], counted[..., order], numbers)


def _match(objects: Boxes, crowds: np.ndarray, detections: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """(V, T, n) which detections hit objects of the view, and which hit something that is ignored.

    Args:
        objects: of one category.
        crowds: see :func:`matches_of`.
        detections: of the category, image by image, the most certain first.
    """
    views = len(objects.within)
    hits = np.zeros((views, len(THRESHOLDS), len(detections.images)), dtype=bool)
    ignored = np.zeros_like(hits)
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    for image in np.unique(objects.images):
        first, last = np.searchsorted(detections.images, [image, image + 1])
        truths = np.flatnonzero(objects.images == image)
        if first == last:
            continue
        crowd, outside = crowds[truths], ~objects.within[:, truths] | crowds[truths]
        overlaps = mask.iou(detections.boxes[first:last], objects.boxes[truths], crowd.astype(np.uint8))
        taken = np.zeros((views, len(THRESHOLDS), len(truths)), dtype=bool)
        for number in np.flatnonzero(overlaps.max(axis=1) >= least[0]):
            overlap = overlaps[number]
            free = (~taken | crowd) & (overlap >= least)
            inside = free & ~outside[:, None]
            # an object of the view comes before one that is ignored, and the last of several equal ones wins
            allowed = np.where(inside.any(axis=2, keepdims=True), inside, free)
            best = len(truths) - 1 - np.where(allowed, overlap, -1.0)[..., ::-1].argmax(axis=2)
            found = allowed.any(axis=2)
            of_ignored = np.take_along_axis(outside, best, axis=1)
            hits[..., first + number] = found & ~of_ignored
            ignored[..., first + number] = found & of_ignored
            view, threshold = np.nonzero(found)
            taken[view, threshold, best[view, threshold]] = True
    return hits, ignored


def average_precisions(matches: Iterator[Matches], times: np.ndarray, views: int) -> np.ndarray:
    """COCO's average precision of every view when images count several times.

    Args:
        matches: of every category that has objects.
        times: (B, N) how often each image counts.
        views: V.

    Returns:
        (B, V): the mean over IoU thresholds, recalls and the categories with objects; NaN where there is none.
    """
    sums, categories = np.zeros((2, views, len(times)))
    by_image = np.ascontiguousarray(times.T, dtype=np.int32)
    for found in matches:
        weights = by_image[found.images]  # (n, B): sums over detections run along the first axis, which is fast
        sure = weights.cumsum(axis=0, dtype=np.int32)
        for view in range(views):
            objects = times @ found.objects[view]
            categories[view] += objects > 0
            of_view = [
                _precision(hits, counted, weights, sure, objects)
                for hits, counted in zip(found.hits[view], found.counted[view], strict=True)
            ]
            sums[view] += np.where(objects > 0, np.mean(of_view, axis=0), 0.0)
    with np.errstate(invalid='ignore'):
        return (sums / categories).T


def _precision(
    hits: np.ndarray, counted: np.ndarray, weights: np.ndarray, all_sums: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """(B,) average precision of one category at one threshold; what it says of resamples without objects is void.

    Args:
        hits: (n,) bool.
        counted: (n,) bool.
        weights: (n, B) how often each detection is there.
        all_sums: (n, B) their sums from the first to each detection.
        objects: (B,) number of objects.
    """
    at = np.flatnonzero(hits)
    if not len(at):
        return np.zeros(len(objects))
    numbers = np.flatnonzero(counted[: at[-1] + 1])  # what follows the last hit changes nothing
    if len(numbers) == at[-1] + 1:
        so_far = all_sums[at]
    else:
        so_far = weights[numbers].cumsum(axis=0, dtype=np.int32)[np.searchsorted(numbers, at)]
    good = weights[at].cumsum(axis=0, dtype=np.int32)
    precision = good / np.maximum(so_far, 1)
    best_from = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(RECALLS, good / np.maximum(objects, 1), side='right')
    return (best_from * np.diff(reached, axis=0, prepend=0)).sum(axis=0) / len(RECALLS)
