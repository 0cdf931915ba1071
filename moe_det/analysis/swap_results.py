"""What other routings do to the average precision: the swap test and related routings, as plain numbers.

Keys are documented in ``docs/size_specialization.md``. Letters: N images, g ground truths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .resampled_precision import SIZE_MEASURES, PrecisionSamples, ResampledPrecision, Thirds, difference
from .result import ALPHA, holm
from .sizes import RelativeSizes
from .units import Unit

FEWEST_IMAGES = 20  # a standard error from fewer resampled images is too imprecise
MIN_LOSS = 0.001  # a loss of AP that exists but is smaller than this is not called a function


def costs(measures: Mapping[str, dict | None]) -> bool | None:
    """Whether a routing loses average precision at some size, or as a whole; None if one that is not known decides.

    Of AP, AP_S, AP_M and AP_L one at least must be lower by a tenth of a point or more, with a one-sided p-value of
    at most 0.01 after Holm's correction over the four.

    Args:
        measures: by name ``difference`` and ``p_value``, see
            :func:`~moe_det.analysis.resampled_precision.difference`.
    """
    if sizes_that_lose(measures):
        return True
    return None if unknown_measures(measures) else False


def unknown_measures(measures: Mapping[str, dict | None]) -> list[str]:
    """Those of AP, AP_S, AP_M and AP_L that have no difference."""
    return [name for name in SIZE_MEASURES if measures.get(name) is None]


def sizes_that_lose(measures: Mapping[str, dict | None]) -> list[str]:
    """The measures that make :func:`costs` true, in the order AP, AP_S, AP_M, AP_L."""
    known = {name: found for name in SIZE_MEASURES if (found := measures.get(name)) is not None}
    adjusted = holm(found['p_value'] for found in known.values())
    return [
        name
        for (name, found), p_value in zip(known.items(), adjusted, strict=True)
        if p_value is not None and p_value <= ALPHA and found['difference'] <= -MIN_LOSS
    ]


def thirds_of(unit: Unit, relative: RelativeSizes, num_objects: int) -> Thirds:
    """The third of each object at the level where most of it is, and the areas that part the thirds at each level.

    Args:
        unit: entries with their levels: the training unit, which has all objects.
        relative: sizes of these entries within their levels, in three bins.
        num_objects: g.
    """
    third = np.full(num_objects, -1, dtype=np.int64)
    order = np.argsort(unit.shares, kind='stable')  # the largest share is written last
    third[unit.objects[order]] = relative.bins[order]
    limits = {
        int(level): (float(low), float(high))
        for level, (low, high) in zip(relative.levels, relative.limits, strict=True)
    }
    return Thirds(third, limits)


@dataclass(frozen=True)
class Donors:
    """How many images took part in the swap test.

    Attributes:
        draws: how often routes were exchanged.
        images: images that got another's route.
        left: images that kept their own because no other image had the same rows, or none of another group.
    """

    draws: int
    images: int
    left: int

    @staticmethod
    def of(donors: np.ndarray) -> Donors:
        """Counts (draws, N) donors, -1 for none."""
        swapped = (donors >= 0).any(axis=0) if len(donors) else np.zeros(0, dtype=bool)
        return Donors(len(donors), int(swapped.sum()), int((~swapped).sum()))

    @property
    def reason(self) -> str | None:
        """Why the swap test says nothing, or None."""
        if self.draws == 0:
            return 'it was not run'
        if self.images < FEWEST_IMAGES:
            return f'{self.images} images could exchange routes; at least {FEWEST_IMAGES} are needed'
        return None


class RoutePrecision:
    """Average precision of the natural and of other routings, evaluated once each.

    Args:
        precision: evaluates detections on the images and on resamples.
        conditions: detections by the name of the condition, the natural one as ``'natural'``.
    """

    def __init__(self, precision: ResampledPrecision, conditions: Mapping[str, np.ndarray]) -> None:
        self.precision = precision
        self.conditions = conditions
        self._natural: dict[bool, PrecisionSamples] = {}

    def natural(self, thirds: bool) -> PrecisionSamples:
        """The samples of the natural routing."""
        if thirds not in self._natural:
            self._natural[thirds] = self.precision.of(self.conditions['natural'], thirds)
        return self._natural[thirds]

    def numbered(self, prefix: str) -> list[str]:
        """Names of the conditions ``<prefix>/0``, ``<prefix>/1``, ..."""
        return [name for name in self.conditions if name.rpartition('/')[0] == prefix]

    def changes(self, names: Sequence[str], thirds: bool = False) -> dict[str, dict | None]:
        """The mean over some conditions minus the natural routing."""
        return self.changes_of([self.conditions[name] for name in names], thirds)

    def changes_of(self, detections: Sequence[np.ndarray], thirds: bool = False) -> dict[str, dict | None]:
        """The mean over some detections minus the natural routing."""
        return difference([self.precision.of(found, thirds) for found in detections], self.natural(thirds))


def swap_results(precisions: RoutePrecision, layer: str, donors: Donors) -> dict | None:
    """The swap test of a layer, or of ``'all'`` layers at once; None where it was not run."""
    names = precisions.numbered(f'{layer}/swap')
    if donors.reason is not None or not names:
        return None
    measures = precisions.changes(names, thirds=True)
    costly, unknown = costs(measures), unknown_measures(measures)
    return {
        'draws': donors.draws,
        'images': donors.images,
        'images_left': donors.left,
        'costs': costly,
        'costs_reason': None if costly is not None else f'{", ".join(unknown)}: no object, or too few images with one',
        'sizes_that_lose': sizes_that_lose(measures),
        **measures,
    }


def route_results(
    precisions: RoutePrecision, layer: str, losses: Mapping[str, np.ndarray], donors: Donors
) -> dict | None:
    """Other routes of a layer: of other levels, one for all rows, the best for each image.

    Args:
        precisions: of all conditions.
        layer: path of the layer.
        losses: (N,) detection loss of each image, by condition, the natural one among them.
        donors: of the swap test.

    Returns:
        None where no route was tried. The fixed route is the one with the smallest mean loss; the best route of an
        image is the one of smallest loss among the fixed ones and the natural one. Both know the ground truth.
    """
    routes = precisions.numbered(f'{layer}/route')
    shifted = precisions.numbered(f'{layer}/levels')
    if donors.reason is not None or not routes and not shifted:
        return None
    found: dict[str, dict | None] = {'between_levels': None, 'fixed': None, 'best_per_image': None}
    if shifted:
        found['between_levels'] = precisions.changes(shifted)
    names = ['natural', *routes]
    if all(name in losses and np.isfinite(losses[name]).all() for name in names) and routes:
        table = np.stack([losses[name] for name in names])
        fixed = routes[int(table[1:].mean(axis=1).argmin())]
        experts = [int(expert) for expert in fixed.rpartition('/')[2].split('+')]
        found['fixed'] = {'experts': experts, **precisions.changes([fixed])}
        best = table.argmin(axis=0)
        parts = [
            precisions.conditions[name][np.isin(precisions.conditions[name][:, 0], np.flatnonzero(best == number))]
            for number, name in enumerate(names)
        ]
        found['best_per_image'] = {'candidates': len(names), **precisions.changes_of([np.concatenate(parts)])}
    return found
