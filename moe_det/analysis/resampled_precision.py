"""Average precision under resampled images, so that two routings can be compared with an interval.

Letters: B resamples, M measures, g ground truths.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from .coco_matching import Boxes, average_precisions, matches_of
from .ground_truth import GroundTruth

SIZE_MEASURES = ('AP', 'AP_S', 'AP_M', 'AP_L')
THIRD_MEASURES = ('AP_lower', 'AP_middle', 'AP_upper')
ROUNDING = 1e-9  # of average precisions
OUTSIDE = -1.0  # the third of detections that belong to none


@dataclass(frozen=True)
class Thirds:
    """Which third of its level's areas an object or a detection belongs to.

    Attributes:
        objects: (g,) 0, 1 or 2; -1 for objects that belong to none.
        limits: by pyramid level the two areas in original pixels that part the thirds; an area on a limit counts as
            the smaller.
    """

    objects: np.ndarray
    limits: Mapping[int, tuple[float, float]]

    def of_detections(self, detections: np.ndarray) -> np.ndarray:
        """(n,) third of each detection by its own level and area; ``OUTSIDE`` where its level has no limits."""
        area = detections[:, 3] * detections[:, 4]
        third = np.full(len(detections), OUTSIDE)
        for level, limits in self.limits.items():
            at = detections[:, 7] == level
            third[at] = np.searchsorted(np.asarray(limits, dtype=np.float64), area[at])
        return third


@dataclass(frozen=True)
class PrecisionSamples:
    """Average precisions of one routing.

    Attributes:
        point: on the images as they are, by name; None where no object decides.
        samples: (B, M) under the resamples, NaN where no object decides.
        names: of the M measures.
        freedom: by name the degrees of freedom of a standard error from these samples, at least 1.
    """

    point: dict[str, float | None]
    samples: np.ndarray
    names: tuple[str, ...]
    freedom: Mapping[str, float]


class ResampledPrecision:
    """COCO's average precision on the images and on resamples of them, the same for all detections it is asked about.

    Args:
        ground_truth: images and objects.
        resamples: B, how often images are drawn with replacement.
        seed: of the draws.
        groups: (N,) what each image belongs to; whole groups are drawn then.
        thirds: adds the precision of the thirds of relative size: objects of other thirds, and detections that match
            no object and belong to another third themselves, are ignored as COCO ignores those of other sizes.

    Attributes:
        draws: B arrays of image positions.
    """

    def __init__(
        self,
        ground_truth: GroundTruth,
        resamples: int,
        seed: int,
        groups: Sequence[Hashable] | None = None,
        thirds: Thirds | None = None,
    ) -> None:
        self.ground_truth = ground_truth
        self.thirds = thirds
        self.names = SIZE_MEASURES + (THIRD_MEASURES if thirds else ())
        numbers: dict[Hashable, int] = {}
        images = range(len(ground_truth.image_ids))
        group = np.array([numbers.setdefault(name, len(numbers)) for name in (images if groups is None else groups)])
        members = [np.flatnonzero(group == number) for number in range(len(numbers))]
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, len(members), (resamples, len(members)))
        self.draws = [np.concatenate([members[number] for number in of_one]) for of_one in drawn]
        self._freedom = {name: self._degrees(at, group, resamples) for name, at in self._objects_of().items()}

    def _objects_of(self) -> dict[str, np.ndarray]:
        """By measure which objects decide it."""
        objects = self.ground_truth.objects
        found = {'AP': np.ones(len(objects.sizes), dtype=bool)}
        found |= {name: objects.sizes == size for size, name in enumerate(SIZE_MEASURES[1:])}
        if self.thirds is not None:
            found |= {name: self.thirds.objects == third for third, name in enumerate(THIRD_MEASURES)}
        return found

    def _degrees(self, objects: np.ndarray, group: np.ndarray, resamples: int) -> float:
        """Degrees of freedom of a standard error over images of which few hold most of the objects.

        The effective number of images is (sum n)^2 / sum n^2 over their numbers n of objects (Kish 1965).
        """
        counts = np.bincount(group[self.ground_truth.objects.image_ids[objects]]).astype(float)
        effective = counts.sum() ** 2 / max((counts**2).sum(), 1.0)
        return float(max(1.0, min(effective, resamples) - 1))

    def of(self, detections: np.ndarray, thirds: bool = True) -> PrecisionSamples:
        """Evaluates detections.

        Args:
            detections: (n, 8), see :meth:`.GroundTruth.average_precision`; levels are read where there are thirds.
            thirds: with the thirds of relative size, where they are known.
        """
        objects, area = self.ground_truth.objects, detections[:, 3] * detections[:, 4]
        ranges = self.ground_truth.area_ranges()
        of_objects = [_inside(objects.areas, limits) for limits in ranges]
        of_detections = [_inside(area, limits) for limits in ranges]
        names: tuple[str, ...] = SIZE_MEASURES
        if thirds and self.thirds is not None:
            names += THIRD_MEASURES
            third = self.thirds.of_detections(detections)
            of_objects += [self.thirds.objects == number for number in range(len(THIRD_MEASURES))]
            of_detections += [third == number for number in range(len(THIRD_MEASURES))]
        truths, crowds = self.ground_truth.boxes(np.array(of_objects))
        images, labels = detections[:, [0, 6]].astype(np.int64).T
        found = Boxes(images, labels, detections[:, 1:5], np.array(of_detections))
        num_images = len(self.ground_truth.image_ids)
        times = [np.bincount(drawn, minlength=num_images) for drawn in (np.arange(num_images), *self.draws)]
        matches = matches_of(truths, crowds, found, detections[:, 5], num_images)
        values = average_precisions(matches, np.array(times), len(names))
        point = {name: None if np.isnan(ap) else float(ap) for name, ap in zip(names, values[0], strict=True)}
        return PrecisionSamples(point, values[1:], names, self._freedom)


def _inside(areas: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    return (areas >= limits[0]) & (areas <= limits[1])


def difference(swapped: Sequence[PrecisionSamples], natural: PrecisionSamples) -> dict[str, dict | None]:
    """Compares routings with the natural one on the same resamples.

    Args:
        swapped: one or several draws of the other routing; their mean is compared.
        natural: the natural routing, evaluated by the same :class:`ResampledPrecision`.

    Returns:
        By measure ``difference`` (swapped minus natural), ``interval`` (95 %, two ends) and ``p_value`` (one-sided, of
        a loss), from the standard deviation over the resamples and Student's distribution; None where the average
        precision is undefined, fewer than two resamples define it, or there was a change that no resample varies
        (a single image, or a single group).
    """
    found: dict[str, dict | None] = {}
    for column, name in enumerate(natural.names):
        of_natural = natural.point[name]
        points = [point for samples in swapped if (point := samples.point[name]) is not None]
        changes = np.mean([samples.samples[:, column] for samples in swapped], axis=0) - natural.samples[:, column]
        changes = changes[np.isfinite(changes)]
        if of_natural is None or len(points) < len(swapped) or len(changes) < 2:
            found[name] = None
            continue
        change = float(np.mean(points) - of_natural)
        error = float(changes.std(ddof=1))
        if error < ROUNDING < abs(change):
            found[name] = None
            continue
        freedom = natural.freedom[name]
        low, high = (float(change + sign * student.ppf(0.975, freedom) * error) for sign in (-1, 1))
        p_value = float(student.cdf(change / error, freedom)) if error >= ROUNDING else 1.0
        found[name] = {'difference': change, 'interval': [low, high], 'p_value': p_value}
    return found
