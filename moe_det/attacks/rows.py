"""What is attacked: a detector under its own routing, under that of each expert forced, and with all experts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from mmengine.structures import InstanceData
from torch import Tensor

from ..routing.intervention import Intervention, intervene
from ..routing.router import find_routers
from .agreement import Choices
from .objectives import predict

if TYPE_CHECKING:
    from mmdet.models.detectors import BaseDetector

OWN, FORCED, ALL = 'own', 'forced', 'all'  # kinds of rows


@dataclass(frozen=True)
class Row:
    """One row of the tables.

    Attributes:
        name: as the tables have it.
        model: the detector, in eval mode; rows of one checkpoint share it.
        interventions: by layer; empty for the detector's own routing.
        expert: number of the expert that is forced (of the copy in every shard); None where none is.
    """

    name: str
    model: BaseDetector
    interventions: dict[str, Intervention] = field(default_factory=dict, hash=False)
    expert: int | None = None

    @property
    def decides(self) -> bool:
        """Whether gates of its own decide, so that they can be attacked and asked whether they agree."""
        return not self.interventions and bool(find_routers(self.model))

    def predict(self, images: Tensor, sample) -> tuple[InstanceData, dict[str, np.ndarray]]:
        """Detections of one image of pixels (1, 3, H, W), and by layer the best experts (R, G) of its gates."""
        with intervene(self.model, self.interventions), Choices(self.model) as choices:
            found = predict(self.model, images, sample)
        return found, choices.found if self.decides else {}


def rows_of_detector(name: str, model: BaseDetector, kinds: Collection[str]) -> list[Row]:
    """The rows of a checkpoint: its own routing and, with experts, the others that are asked for.

    Expert e is forced in every layer that has so many; with shards, copy e of each. With all experts every row runs
    all of its layer by the gate's weights, and with shards all copies share it equally; where that is the detector's
    own routing there is no such row.

    Args:
        name: of its own row.
        model: in eval mode.
        kinds: ``'own'``, ``'forced'``, ``'all'``.
    """
    routers = find_routers(model)
    rows = [Row(name, model)] if OWN in kinds or not routers else []
    for expert in range(max((router.copies for router in routers.values()), default=0) if FORCED in kinds else 0):
        forced = {
            layer: Intervention(forced=tuple(slot * router.copies + expert for slot in range(router.slots)))
            for layer, router in routers.items()
            if expert < router.copies
        }
        rows.append(Row(f'expert {expert}', model, forced, expert))
    if ALL in kinds:
        every = {
            layer: Intervention(top_k=router.num_experts)
            if router.slots == 1
            else Intervention(forced=tuple(range(router.num_experts)))
            for layer, router in routers.items()
            if router.test_top_k < router.num_experts
        }
        if every:
            rows.append(Row('all experts', model, every))
    return rows


def forced_experts(row: Row) -> dict[str, tuple[int, ...]]:
    """By layer, the experts that a row of a forced expert gives every routing row; all layers of the detector.

    A layer with fewer experts stands with its last (our own choice): attacks need a target in each.
    """
    found = {}
    for layer, router in find_routers(row.model).items():
        expert = min(row.expert or 0, router.copies - 1)
        found[layer] = tuple(slot * router.copies + expert for slot in range(router.slots))
    return found
