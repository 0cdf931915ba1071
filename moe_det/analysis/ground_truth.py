"""Ground truths with COCO's sizes, and COCO's matching and average precision by size.

A size is the annotation's ``area`` in original pixels (the mask's where the set has masks), read from the json: mmdet's
data sets drop it. Crowds have no size. Everything that COCO defines is left to pycocotools, and to its compiled twin
faster-coco-eval where the same evaluation is run under many routings; :mod:`.coco_matching` resamples images.

Ids of images, annotations and categories may be anything that json can hold. Both libraries, and tables of floats,
only handle small integers reliably, so everything here is counted by position and ids are kept separately.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faster_coco_eval import COCO as CompiledCOCO  # noqa: N811
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..checks import is_number
from ..errors import DataError
from .coco_json import read_json, source_of
from .coco_matching import MOST_DETECTIONS, Boxes
from .sizes import size_bins

COCO_LIMITS = (32.0, 96.0)  # sides in pixels
WHOLE = 1e10  # COCO's upper bound of an area


@dataclass(frozen=True)
class Objects:
    """The ground truths that have a size, one entry each, image by image.

    Attributes:
        image_ids: (g,) position of their image in :attr:`GroundTruth.image_ids`.
        areas: (g,) area in original pixels.
        sizes: (g,) 0, 1, ... for small, medium, large; an area on a limit counts as the smaller.
        categories: (g,) position of their category in :attr:`GroundTruth.category_ids`.
        boxes: (g, 4) x, y, width, height in original pixels.
    """

    image_ids: np.ndarray
    areas: np.ndarray
    sizes: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray

    def of_image(self, position: int) -> np.ndarray:
        """Numbers of an image's objects."""
        return np.flatnonzero(self.image_ids == position)


class GroundTruth:
    """The annotations of some images of a COCO json.

    Args:
        path: the json.
        image_ids: ids of the images to look at, each once; their order numbers the images. None takes all.
        category_ids: ids of the categories to look at; their order numbers the categories and must be that of the
            detector's labels. None takes all in the order of the file.
        limits: limits in pixels between small, medium and large sides; areas are their squares.

    Attributes:
        image_ids: id of each image.
        category_ids: id of each category.
        category_names: name of each category.
        annotation_ids: id of each object.
        objects: ground truths, crowds excluded.
        crowds: number of crowds left out.
        source: what the json says of where the images are from and of their licences; None if nothing.

    Raises:
        DataError: no annotations, an annotation without a usable ``area``, an image that is named twice, or images
            that the json does not have.
    """

    def __init__(
        self,
        path: str | Path,
        image_ids: Sequence[Hashable] | None = None,
        category_ids: Sequence[Hashable] | None = None,
        limits: Sequence[float] = COCO_LIMITS,
    ) -> None:
        self.path = str(path)
        self.limits = tuple(float(limit) for limit in limits)
        content = read_json(str(path))
        if not isinstance(content, dict):
            raise DataError(f'{path}: expected COCO annotations, a JSON object')
        self.source = source_of(content)
        known = [image['id'] for image in content.get('images', [])]
        self.image_ids = known if image_ids is None else list(image_ids)
        self._position_of = {image_id: position for position, image_id in enumerate(self.image_ids)}
        self._check_images(set(known))
        names = {entry['id']: str(entry.get('name', entry['id'])) for entry in content.get('categories', [])}
        self.category_ids = list(names if category_ids is None else category_ids)
        self.category_names = [names.get(category_id, str(category_id)) for category_id in self.category_ids]
        self._label_of = {category_id: label for label, category_id in enumerate(self.category_ids)}
        chosen = [
            annotation
            for annotation in content.get('annotations') or []
            if annotation['image_id'] in self._position_of and annotation['category_id'] in self._label_of
        ]
        chosen.sort(key=lambda annotation: self._position_of[annotation['image_id']])  # image by image
        alone = [annotation for annotation in chosen if not _is_crowd(annotation)]
        self._crowds = [annotation for annotation in chosen if _is_crowd(annotation)]
        self.crowds = len(self._crowds)
        self.annotation_ids = [annotation['id'] for annotation in alone]
        self.objects = self._objects(alone)

    def _check_images(self, known: set[Hashable]) -> None:
        if len(self._position_of) < len(self.image_ids):
            twice = next(name for n, name in enumerate(self.image_ids) if self._position_of[name] != n)
            raise DataError(f'{self.path}: the image {twice} is named twice, so its objects would count twice')
        unknown = [image_id for image_id in self.image_ids if image_id not in known]
        if unknown:
            raise DataError(
                f'{self.path} does not have the image {unknown[0]}'
                + (f' and {len(unknown) - 1} more' if len(unknown) > 1 else '')
                + ': the annotation file and the test data set do not belong together'
            )

    def positions_of(self, image_ids: Iterable[Hashable]) -> list[int]:
        """Positions of images, by their ids.

        Raises:
            KeyError: an image that this ground truth does not hold.
        """
        return [self._position_of[image_id] for image_id in image_ids]

    def _objects(self, annotations: list[dict]) -> Objects:
        if not annotations:
            raise DataError(
                f'{self.path}: the {len(self.image_ids)} images have no annotated object: without objects there are '
                'no sizes (a test set without public annotations?)'
            )
        areas = np.array([checked_area(self.path, a) for a in annotations])
        return Objects(
            image_ids=np.array(self.positions_of(a['image_id'] for a in annotations), dtype=np.int64),
            areas=areas,
            sizes=size_bins(areas, np.square(self.limits)),
            categories=np.array([self._label_of[a['category_id']] for a in annotations], dtype=np.int64),
            boxes=np.array([a['bbox'] for a in annotations], dtype=np.float64).reshape(-1, 4),
        )

    def area_ranges(self) -> list[list[float]]:
        """All areas, then small, medium, large; both ends belong to a range, as in pycocotools."""
        bounds = [0.0, *np.square(self.limits), WHOLE]
        return [[0.0, WHOLE], *([low, high] for low, high in zip(bounds, bounds[1:], strict=False))]

    def boxes(self, within: np.ndarray) -> tuple[Boxes, np.ndarray]:
        """Objects and, behind them, crowds; and (g,) which of them are crowds.

        Args:
            within: (V, objects) which objects belong to each view.
        """
        objects, crowds = self.objects, self._crowds
        images = [self._position_of[crowd['image_id']] for crowd in crowds]
        labels = [self._label_of[crowd['category_id']] for crowd in crowds]
        boxes = np.array([crowd['bbox'] for crowd in crowds], dtype=np.float64).reshape(-1, 4)
        found = Boxes(
            np.concatenate([objects.image_ids, np.array(images, dtype=np.int64)]),
            np.concatenate([objects.categories, np.array(labels, dtype=np.int64)]),
            np.concatenate([objects.boxes, boxes]),
            np.concatenate([within, np.zeros((len(within), len(crowds)), dtype=bool)], axis=1),
        )
        return found, np.arange(len(found.images)) >= len(objects.image_ids)

    # -- COCO's evaluation -------------------------------------------------------------------------------------

    def evaluate(
        self,
        detections: np.ndarray,
        ranges: list[list[float]],
        compiled: bool = True,
        thresholds: Sequence[float] | None = None,
    ) -> COCOeval | COCOeval_faster:
        """COCO's evaluation of these images and categories, matched but not accumulated.

        In it images and categories have their positions as ids, object i has the id i + 1 and so has detection i.

        Args:
            detections: as for :meth:`average_precision`.
            ranges: of areas, one or several.
            compiled: by faster-coco-eval instead of pycocotools.
            thresholds: of IoU; None takes COCO's.
        """
        objects = self.objects
        columns = (objects.image_ids, objects.categories, objects.boxes, objects.areas)
        truths = [_entry(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]
        for crowd in self._crowds:  # never counted, so that the area does not matter
            places = self._position_of[crowd['image_id']], self._label_of[crowd['category_id']]
            truths.append({**_entry(*places, crowd['bbox'], 0.0), 'iscrowd': 1})
        images, labels = detections[:, [0, 6]].astype(np.int64).T
        area = detections[:, 3] * detections[:, 4]
        columns_found = (images, labels, detections[:, 1:5], area, detections[:, 5])
        found = [_entry(*values) for values in zip(*(column.tolist() for column in columns_found), strict=True)]
        library, evaluator = (CompiledCOCO, COCOeval_faster) if compiled else (COCO, COCOeval)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = evaluator(self._indexed(library, truths), self._indexed(library, found), 'bbox')
            evaluation.params.imgIds = list(range(len(self.image_ids)))
            evaluation.params.catIds = list(range(len(self.category_ids)))
            evaluation.params.maxDets = [MOST_DETECTIONS]
            evaluation.params.areaRng = ranges
            evaluation.params.areaRngLbl = [str(number) for number in range(len(ranges))]
            if thresholds is not None:
                evaluation.params.iouThrs = np.asarray(thresholds)
            evaluation.evaluate()
        return evaluation

    def _indexed(self, library: type, annotations: list[dict]) -> COCO | CompiledCOCO:
        """A COCO object of one of the two libraries."""
        made = library()
        made.dataset = {
            'images': [{'id': position} for position in range(len(self.image_ids))],
            'categories': [{'id': label} for label in range(len(self.category_ids))],
            'annotations': [{'id': number, **entry} for number, entry in enumerate(annotations, start=1)],
        }
        made.createIndex()
        return made

    def average_precision(self, detections: np.ndarray) -> dict[str, float | None]:
        """COCO's AP, AP50, AP75 and the AP of each size.

        Args:
            detections: (n, 8) image position, x, y, width, height in original pixels, score, label, pyramid level; the
                level is not looked at here.

        Returns:
            By name; None where no object decides (no ground truth of that size).
        """
        evaluation = self.evaluate(detections, self.area_ranges())
        with contextlib.redirect_stdout(io.StringIO()):
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
        return {name: mean_precision(values) for name, values in parts.items()}

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
        evaluation = self.evaluate(detections, [[0.0, WHOLE]], compiled=False, thresholds=[iou])
        matches = np.full(len(self.annotation_ids), -1, dtype=np.int64)
        for result in evaluation.evalImgs:
            if result is None:
                continue
            for truth, detection in zip(result['gtIds'], result['gtMatches'][0], strict=True):
                if truth <= len(matches):  # not a crowd
                    matches[truth - 1] = int(detection) - 1  # 0 stands for none
        return matches


def checked_area(path: str, annotation: dict) -> float:
    """The area of an annotation, in pixels.

    Raises:
        DataError: it has none.
    """
    area = annotation.get('area')
    if not is_number(area, 0):
        raise DataError(
            f"{path}: annotation {annotation['id']}: 'area' is {area!r}, expected pixels >= 0; COCO's small, medium "
            'and large are areas, so every annotation needs one'
        )
    return float(area)


def mean_precision(precision: np.ndarray) -> float | None:
    """Mean over thresholds, recalls and categories; None where no category has an object."""
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None


def _is_crowd(annotation: dict) -> bool:
    return bool(annotation.get('iscrowd', 0))


def _entry(image: int, label: int, box: Sequence[float], area: float, score: float = 1.0) -> dict:
    """An object or a detection as COCO's libraries know it."""
    return {'image_id': image, 'category_id': label, 'bbox': box, 'area': area, 'score': score, 'iscrowd': 0}
