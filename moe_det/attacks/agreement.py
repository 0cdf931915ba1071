"""Routing agreement: how many decisions stay when an image is changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..routing.records import Recorder
from ..routing.regions import ROI
from ..routing.routing import Routing
from ..routing.rows import RowLayout


class Choices(Recorder):
    """Notes which experts each row is given while it is entered.

    Where rows run all experts, what counts is the one of the largest probability (our own choice), or nothing would
    ever change.

    Args:
        model: a model with MoE layers.

    Attributes:
        found: by layer, (R, E) whether a row has an expert. Layers that decide about regions of interest are left out:
            another image has other regions.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._calls: dict[str, list[Tensor]] = {name: [] for name in self.routers}

    def receive(self, layer: str, routing: Routing, layout: RowLayout) -> None:
        if layout.unit == ROI:
            return
        if routing.indices.shape[1] == routing.num_experts:
            chosen = torch.nn.functional.one_hot(routing.logits.argmax(1), routing.num_experts).bool()
        else:
            chosen = routing.dense(torch.ones_like(routing.log_weights), 0.0) > 0
        self._calls[layer].append(chosen.cpu())

    @property
    def found(self) -> dict[str, Tensor]:
        """By layer, (R, E)."""
        return {name: torch.cat(calls) for name, calls in self._calls.items() if calls}


class Agreement:
    """Counts the rows that keep their experts; a share of them by layer.

    With each image routed on its own, rows of two images of one size correspond by their number: a level, a patch, a
    token. Object queries that an encoder proposes correspond by their rank.
    """

    def __init__(self) -> None:
        self._kept: dict[str, int] = {}
        self._rows: dict[str, int] = {}

    def add(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        """Compares the choices (R, E) of every layer for one image; layers with another number of rows are left out."""
        for layer, first in before.items():
            second = after.get(layer)
            if second is not None and len(second) == len(first):
                self._kept[layer] = self._kept.get(layer, 0) + int((first == second).all(dim=1).sum())
                self._rows[layer] = self._rows.get(layer, 0) + len(first)

    def shares(self) -> dict[str, float]:
        """By layer, the share of rows whose set of experts is the same."""
        return {layer: self._kept[layer] / rows for layer, rows in self._rows.items() if rows}
