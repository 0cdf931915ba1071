"""Recognises boxes in another notation than COCO's [x, y, width, height], which most of them fit as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

# pixels that a box may reach beyond its image: files round
TOLERANCE = 1.0
# of the boxes, those that must reach beyond their images before another notation is tried
BEYOND_AS_COCO = {'corner_boxes': 0.1, 'centre_boxes': 0.02}
FEWEST_BEYOND = 3
# of the boxes, those that may fit neither way: single mistakes
MISFITS = {'corner_boxes': 0.0, 'centre_boxes': 0.01}
# outlines are compared of at least so many annotations, and of at most so many
OUTLINES = (5, 2000)

Box = tuple[float, float, float, float]
_READINGS: dict[str, Callable[..., Box]] = {
    'corner_boxes': lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1),
    'centre_boxes': lambda x, y, w, h: (x - w / 2, y - h / 2, w, h),
}


def other_notation(annotations: list, sizes: dict) -> tuple[str, str] | None:
    """Returns the kind of notation that the boxes are in if it is not COCO's, and the evidence for it.

    There are two kinds of evidence: the polygons of the annotations, if nearly all boxes enclose them in the other
    notation and not in COCO's; and boxes that reach beyond their images, if all boxes lie inside in the other notation.

    Args:
        annotations: the file's list.
        sizes: (width, height) by image id; None where it is unusable.
    """
    outlines = list(_with_outline(annotations))
    if len(outlines) >= OUTLINES[0]:
        right = sum(_agree(box, outline) for box, outline in outlines)
        for kind, read in _READINGS.items():
            fitting = sum(_agree(read(*box), outline) for box, outline in outlines)
            if fitting >= 0.9 * len(outlines) and right <= 0.1 * len(outlines):
                text = f'{fitting:,} of {len(outlines):,} boxes enclose their polygons so, as they are {right:,} do'
                return kind, text
        return None
    boxes = list(_with_size(annotations, sizes))
    beyond = sum(not _inside(box, size) for box, size in boxes)
    for kind, read in _READINGS.items():
        if beyond < FEWEST_BEYOND or beyond <= BEYOND_AS_COCO[kind] * len(boxes):
            continue
        misfits = sum(not _inside(read(*box), size) for box, size in boxes)
        if misfits <= MISFITS[kind] * len(boxes):
            return kind, f'{beyond / len(boxes):.0%} of the boxes reach beyond their images as they are; so they fit'
    return None


def _inside(box: Box, size: tuple) -> bool:
    x, y, w, h = box
    fits = x >= -TOLERANCE and y >= -TOLERANCE and x + w <= size[0] + TOLERANCE and y + h <= size[1] + TOLERANCE
    return fits and w > 0 and h > 0


def _with_size(annotations: Iterable, sizes: dict) -> Iterator[tuple[Box, tuple]]:
    """Boxes of four numbers with the size of their image; others have been reported for themselves."""
    for annotation in annotations:
        try:
            x, y, w, h = (0.0 + value for value in annotation['bbox'])
            width, height = sizes[annotation['image_id']]
        except (TypeError, KeyError, ValueError, OverflowError):
            continue
        yield (x, y, w, h), (width, height)


def _with_outline(annotations: Iterable) -> Iterator[tuple[Box, Box]]:
    """Boxes with the box around their polygons."""
    found = 0
    for annotation in annotations:
        if found == OUTLINES[1]:
            return
        try:
            polygons = annotation['segmentation']
            if not isinstance(polygons, list):
                continue
            x, y, w, h = (0.0 + value for value in annotation['bbox'])
            across = [0.0 + value for polygon in polygons for value in polygon[::2]]
            down = [0.0 + value for polygon in polygons for value in polygon[1::2]]
            outline = (min(across), min(down), max(across) - min(across), max(down) - min(down))
        except (TypeError, KeyError, ValueError, OverflowError):
            continue
        found += 1
        yield (x, y, w, h), outline


def _agree(box: Box, outline: Box) -> bool:
    slack = 2 * TOLERANCE + 0.05 * max(outline[2:])
    return all(abs(a - b) <= slack for a, b in zip(box, outline, strict=True))
