"""Routing agreement: how many decisions stay when an image is changed."""

from __future__ import annotations

import numpy as np
from torch import nn

from ..analysis.agreement import best_experts, share_kept
from ..routing.records import Recorder
from ..routing.regions import ROI
from ..routing.routing import Routing
from ..routing.rows import RowLayout


class Choices(Recorder):
    """Notes the most probable expert of each row (with slots: of every slot) while it is entered.

    Args:
        model: a model with MoE layers.

    Attributes:
        found: by layer, (R, G). Layers that decide about regions of interest are left out: another image has other
            regions.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._calls: dict[str, list[np.ndarray]] = {name: [] for name in self.routers}

    def receive(self, layer: str, routing: Routing, layout: RowLayout) -> None:
        if layout.unit != ROI:
            probs = routing.probs.float().cpu().numpy()
            self._calls[layer].append(best_experts(probs, self.routers[layer].slots))

    @property
    def found(self) -> dict[str, np.ndarray]:
        """By layer, (R, G)."""
        return {name: np.concatenate(calls) for name, calls in self._calls.items() if calls}


class KeptChoices:
    """Counts the choices that stay; a share of them by layer.

    With each image routed on its own, rows of two images of one size correspond by their number: a level, a patch, a
    token. Object queries that an encoder proposes correspond by their rank.
    """

    def __init__(self) -> None:
        self._kept: dict[str, float] = {}
        self._rows: dict[str, int] = {}

    def add(self, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
        """Compares the choices (R, G) of every layer for one image; layers with another number of rows are left out."""
        for layer, first in before.items():
            second = after.get(layer)
            if second is not None and len(second) == len(first):
                self._kept[layer] = self._kept.get(layer, 0.0) + share_kept(first, second) * len(first)
                self._rows[layer] = self._rows.get(layer, 0) + len(first)

    def shares(self) -> dict[str, float]:
        """By layer, the share of choices that stay: ``same_best`` of :class:`~moe_det.analysis.agreement.Agreement`."""
        return {layer: self._kept[layer] / rows for layer, rows in self._rows.items() if rows}
