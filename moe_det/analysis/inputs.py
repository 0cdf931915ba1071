"""What the results of a layer are made from: the layer, the findings on it, and the settings of the statistics."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .ground_truth import GroundTruth
from .swap_results import Donors, RoutePrecision

if TYPE_CHECKING:
    from ..probing.findings import Findings

QUERY = 'query'  # the unit of layers that decide about object queries, which have no level of a pyramid
REGION = 'roi'  # of those that decide about regions of interest
TOKEN = 'token'  # of those that decide about tokens of an encoder, of which only those of objects are rows here
NUMBERED = (QUERY, REGION, TOKEN)  # of which each row has objects of its own, and no place that images share


@dataclass(frozen=True)
class LayerInfo:
    """What the model says of a layer.

    Attributes:
        name: path in the model.
        unit: ``'level'``, ``'image'``, ``'patch'``, ``'query'``, ``'roi'`` or ``'token'``.
        grid: cells per axis for patches, else None.
        num_experts: E.
        top_k: K.
        balance_over: ``'all'`` or ``'level'``.
        constraints: keys of its constraints.
        slots: shards, of each of which every row runs one copy; 1 where a row runs any K experts.
    """

    name: str
    unit: str
    grid: int | None
    num_experts: int
    top_k: int
    balance_over: str
    constraints: tuple[str, ...]
    slots: int = 1


@dataclass(frozen=True)
class Settings:
    """Settings of the statistics.

    Attributes:
        permutations: of routing rows between images.
        bootstrap: samples of images, for intervals of the routing's statistics.
        seed: of all random draws.
        swaps: how often images exchange their routes in the swap test; 0 skips it.
        resamples: samples of images, for intervals of average precisions.
        random_gates: gates with random weights that the trained one is compared with.
    """

    permutations: int = 10000
    bootstrap: int = 10000
    seed: int = 0
    swaps: int = 4
    resamples: int = 200
    random_gates: int = 200


@dataclass(frozen=True)
class Analysed:
    """What one checkpoint gave: the arguments of the results of every layer.

    Attributes:
        findings: on all images.
        matches: (g,) detection that each object is matched by, -1 where none.
        ground_truth: the objects.
        precisions: average precisions by the name of the condition.
        routes: average precisions of the swap test's conditions with their resamples.
        losses: (N,) detection loss of each image by condition, of the swap test's pass.
        donors: of the swap test.
        unavailable: for ``'detection'`` and ``'training'`` why the unit cannot be had, or None.
        groups: (N,) what each image belongs to; None takes images as independent.
        settings: of the statistics.
        of_queries: whether detections are made by object queries.
    """

    findings: Findings
    matches: np.ndarray
    ground_truth: GroundTruth
    precisions: Mapping[str, dict]
    routes: RoutePrecision | None
    losses: Mapping[str, np.ndarray]
    donors: Donors
    unavailable: Mapping[str, str | None]
    groups: Sequence[Hashable] | None
    settings: Settings = field(default_factory=Settings)
    of_queries: bool = False

    def has_levels(self, info: LayerInfo) -> bool:
        """Whether objects can be followed to the layer's decisions and their level; queries count as one level."""
        if info.unit == TOKEN:
            return True
        followed = self.unavailable['detection'] is None or self.unavailable['training'] is None
        return followed and self.of_queries == (info.unit == QUERY)

    def why_unavailable(self, info: LayerInfo, unit: str) -> str | None:
        """Why the ``'detection'`` or ``'training'`` unit of a layer cannot be had, or None."""
        if info.unit == TOKEN:
            return 'no detection is made by a token of the encoder' if unit == 'detection' else None
        if self.has_levels(info):
            return self.unavailable[unit]
        if unit == 'training':
            return None  # every object at its centre
        return (
            self.unavailable[unit] or 'an object query makes a detection, and this layer does not decide about queries'
        )
