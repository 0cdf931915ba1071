"""Ground truths with COCO's sizes, and COCO's matching and average precision by size.

A size is the annotation's ``area`` in original pixels (the mask's where the set has masks), read from the json: mmdet's
data sets drop it. Crowds have no size. Everything that COCO defines is left to pycocotools, and to its compiled twin
faster-coco-eval where the same evaluation is run under many routings.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faster_coco_eval import COCO as CompiledCOCO  # noqa: N811
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import DataError
from .specialization import size_bins

COCO_LIMITS = (32.0, 96.0)  # sides in pixels
SIZE_NAMES = ('small', 'medium', 'large')
WHOLE = 1e10  # COCO's upper bound of an area
MOST_DETECTIONS = 100  # per image, COCO's standard


@dataclass(frozen=True)
class Objects:
    """The ground truths that have a size, one entry each.

    Attributes:
        ids: (g,) annotation ids.
        image_ids: (g,) their images.
        areas: (g,) area in original pixels.
        sizes: (g,) 0, 1, ... for small, medium, large; an area on a limit counts as the smaller.
        categories: (g,) category ids.
        boxes: (g, 4) x, y, width, height in original pixels.
    """

    ids: np.ndarray
    image_ids: np.ndarray
    areas: np.ndarray
    sizes: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray

    def of_image(self, image_id: int) -> np.ndarray:
        """Positions of an image's objects."""
        return np.flatnonzero(self.image_ids == image_id)


class GroundTruth:
    """The annotations of some images of a COCO json.

    Args:
        path: the json.
        image_ids: the images to look at.
        category_ids: the categories to look at; None takes all.
        limits: sides in pixels that part small from medium and medium from large; areas are their squares.

    Attributes:
        objects: ground truths, crowds excluded.
        crowds: number of crowds left out.

    Raises:
        DataError: no annotations, an annotation without a usable ``area``, or images that the json does not have.
    """

    def __init__(
        self,
        path: str | Path,
        image_ids: Sequence[int],
        category_ids: Sequence[int] | None = None,
        limits: Sequence[float] = COCO_LIMITS,
    ) -> None:
        self.path = str(path)
        self.limits = tuple(float(limit) for limit in limits)
        self.image_ids = [int(image_id) for image_id in image_ids]
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = COCO(self.path)
        unknown = [image_id for image_id in self.image_ids if image_id not in self.coco.imgs]
        if unknown:
            raise DataError(
                f'{self.path} does not have the image {unknown[0]}'
                + (f' and {len(unknown) - 1} more' if len(unknown) > 1 else '')
                + ': the annotation file and the test data set do not belong together'
            )
        self._twin = None  # of self.coco, for the compiled evaluation; indexed when it is asked for
        self.category_ids = sorted(self.coco.cats if category_ids is None else category_ids)
        known = set(self.category_ids)
        annotations = [a for image_id in self.image_ids for a in self.coco.imgToAnns[image_id]]
        chosen = [a for a in annotations if a['category_id'] in known]
        self.crowds = sum(bool(a.get('iscrowd', 0)) for a in chosen)
        self.objects = self._objects([a for a in chosen if not a.get('iscrowd', 0)])

    def _objects(self, annotations: list[dict]) -> Objects:
        if not annotations:
            raise DataError(
                f'{self.path}: the {len(self.image_ids)} images have no annotated object: without objects there are '
                'no sizes (a test set without public annotations?)'
            )
        areas = np.array([self._area(a) for a in annotations])
        return Objects(
            ids=np.array([a['id'] for a in annotations], dtype=np.int64),
            image_ids=np.array([a['image_id'] for a in annotations], dtype=np.int64),
            areas=areas,
            sizes=size_bins(areas, np.square(self.limits)),
            categories=np.array([a['category_id'] for a in annotations], dtype=np.int64),
            boxes=np.array([a['bbox'] for a in annotations], dtype=np.float64).reshape(-1, 4),
        )

    def _area(self, annotation: dict) -> float:
        area = annotation.get('area')
        if isinstance(area, bool) or not isinstance(area, (int, float)) or not 0 <= area < float('inf'):
            raise DataError(
                f"{self.path}: annotation {annotation['id']}: 'area' is {area!r}, expected pixels >= 0; COCO's "
                'small, medium and large are areas, so every annotation needs one'
            )
        return float(area)

    def area_ranges(self) -> list[list[float]]:
        """All areas, then small, medium, large; both ends belong to a range, as in pycocotools."""
        bounds = [0.0, *np.square(self.limits), WHOLE]
        return [[0.0, WHOLE], *([low, high] for low, high in zip(bounds, bounds[1:], strict=False))]

    # -- COCO's evaluation -------------------------------------------------------------------------------------

    def _evaluation(self, detections: np.ndarray, coco: type = COCO, evaluator: type = COCOeval):
        """An evaluation of these images and categories, by pycocotools or by its compiled twin."""
        truth = self.coco
        if coco is not COCO:
            truth = self._twin = self._twin or _indexed(coco, self.coco.dataset)
        annotations = [
            {
                'id': number,
                'image_id': int(row[0]),
                'bbox': row[1:5].tolist(),
                'area': float(row[3] * row[4]),
                'score': float(row[5]),
                'category_id': int(row[6]),
                'iscrowd': 0,
            }
            for number, row in enumerate(detections, start=1)
        ]
        images = [self.coco.imgs[i] for i in self.image_ids]
        categories = self.coco.dataset.get('categories', [])
        found = _indexed(coco, {'images': images, 'categories': categories, 'annotations': annotations})
        evaluation = evaluator(truth, found, 'bbox')
        evaluation.params.imgIds = list(self.image_ids)
        evaluation.params.catIds = list(self.category_ids)
        evaluation.params.maxDets = [MOST_DETECTIONS]
        return evaluation

    def average_precision(self, detections: np.ndarray) -> dict[str, float | None]:
        """COCO's AP, AP50, AP75 and the AP of each size.

        Args:
            detections: (n, 7) image id, x, y, width, height in original pixels, score, category id.

        Returns:
            By name; None where no object decides (no ground truth of that size).
        """
        evaluation = self._evaluation(detections, CompiledCOCO, COCOeval_faster)
        evaluation.params.areaRng = self.area_ranges()
        evaluation.params.areaRngLbl = ['all', *SIZE_NAMES]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        # IoU thresholds, recalls, categories, area ranges, limits of detections
        precision = np.asarray(evaluation.eval['precision'])[..., 0]
        thresholds = list(np.round(evaluation.params.iouThrs, 2))
        parts = {
            'AP': precision[..., 0],
            'AP50': precision[thresholds.index(0.5), ..., 0],
            'AP75': precision[thresholds.index(0.75), ..., 0],
            'AP_S': precision[..., 1],
            'AP_M': precision[..., 2],
            'AP_L': precision[..., 3],
        }
        means = {}
        for name, values in parts.items():
            counted = values[values > -1]
            means[name] = float(counted.mean()) if counted.size else None
        return means

    def match(self, detections: np.ndarray, iou: float = 0.5) -> np.ndarray:
        """Finds the detection that each object is matched by under COCO's rules.

        Detections take their objects in the order of their score, one detection per object and one object per
        detection, within a category, at most 100 detections per image.

        Args:
            detections: as for :meth:`average_precision`.
            iou: least overlap of boxes.

        Returns:
            (g,) position of the detection, -1 for objects that nothing matched; in the order of ``objects``.
        """
        evaluation = self._evaluation(detections)
        evaluation.params.iouThrs = np.array([iou])
        evaluation.params.areaRng = [[0.0, WHOLE]]
        evaluation.params.areaRngLbl = ['all']
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
        matched = {}
        for result in evaluation.evalImgs:
            if result is None:
                continue
            for annotation, detection in zip(result['gtIds'], result['gtMatches'][0], strict=True):
                matched[int(annotation)] = int(detection) - 1  # 0 stands for none
        return np.array([matched.get(int(i), -1) for i in self.objects.ids], dtype=np.int64)


def _indexed(coco: type, dataset: dict):
    """A COCO object of one of the two libraries, without what they print."""
    made = coco()
    made.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        made.createIndex()
    return made
