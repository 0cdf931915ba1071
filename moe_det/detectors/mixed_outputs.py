"""Outputs of whole detectors before NMS: as one row of numbers per image, mixed, and as a head's maps again.

Shape letters: R images, K detectors, C classes, M places (anchors of all levels), T numbers per image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..routing.mixtures import mix_linear, mix_probabilities
from .geometry import PROBABILITIES

Maps = Sequence[Sequence[Tensor]]  # a head's outputs: lists of maps (R, C', H_l, W_l) by level, class logits first


class OutputForm:
    """How a head's outputs lie in a row: class by class the logits of all places, then the other lists as they come.

    Args:
        kinds: how each list of the head's outputs is mixed; see :mod:`moe_det.detectors.geometry`.
        classes: C.
    """

    def __init__(self, kinds: Sequence[str], classes: int) -> None:
        self.kinds = tuple(kinds)
        self.classes = classes
        self._shapes: list[list[torch.Size]] = []  # of the maps of the last batch, without images

    @property
    def lengths(self) -> list[int]:
        """Numbers of each list in a row."""
        return [sum(shape.numel() for shape in levels) for levels in self._shapes]

    def pack(self, outputs: Maps) -> Tensor:
        """A head's outputs -> (R, T)."""
        self._shapes = [[x.shape[1:] for x in levels] for levels in outputs]
        logits = [x.unflatten(1, (-1, self.classes)).transpose(1, 2).flatten(2) for x in outputs[0]]
        rest = [x.flatten(1) for levels in outputs[1:] for x in levels]
        return torch.cat([torch.cat(logits, dim=2).flatten(1), *rest], dim=1)

    def unpack(self, rows: Tensor) -> tuple[list[Tensor], ...]:
        """(R, T) -> the head's outputs."""
        first, *rest = rows.split(self.lengths, dim=1)
        places = [shape.numel() // self.classes for shape in self._shapes[0]]
        levels = first.unflatten(1, (self.classes, -1)).split(places, dim=2)
        logits = [
            x.unflatten(2, (-1, *shape[1:])).transpose(1, 2).flatten(1, 2)
            for x, shape in zip(levels, self._shapes[0], strict=True)
        ]
        others = [
            [x.unflatten(1, shape) for x, shape in zip(part.split(_sizes(shapes), dim=1), shapes, strict=True)]
            for part, shapes in zip(rest, self._shapes[1:], strict=True)
        ]
        return logits, *others

    def mix(self, outputs: Tensor, log_weights: Tensor, sums_to_one: bool = True) -> Tensor:
        """Mixes whole rows (R, K, T) by (R, K) log-weights to (R, T), as the mixtures of experts do."""
        parts = zip(self.kinds, outputs.split(self.lengths, dim=2), strict=True)
        return torch.cat([_mixed(kind, part, log_weights, sums_to_one) for kind, part in parts], dim=1)

    def mix_class(self, outputs: Tensor, log_weights: Tensor, sums_to_one: bool = True) -> Tensor:
        """Mixes the logits (R, K, M) of one class."""
        return _mixed(self.kinds[0], outputs, log_weights, sums_to_one)

    def mix_boxes(self, outputs: Tensor, log_weights: Tensor, sums_to_one: bool = True) -> Tensor:
        """Mixes rows (R, K, T - C M) without class logits."""
        parts = zip(self.kinds[1:], outputs.split(self.lengths[1:], dim=2), strict=True)
        return torch.cat([_mixed(kind, part, log_weights, sums_to_one) for kind, part in parts], dim=1)


def _sizes(shapes: Sequence[torch.Size]) -> list[int]:
    return [shape.numel() for shape in shapes]


def _mixed(kind: str, outputs: Tensor, log_weights: Tensor, sums_to_one: bool) -> Tensor:
    """(R, K, T') -> (R, T')."""
    if outputs.shape[1] == 1 and sums_to_one and not log_weights.requires_grad:
        return outputs[:, 0]  # its weight is 1, up to rounding: one detector alone stays what it is to the last digit
    mix = mix_probabilities if kind == PROBABILITIES else mix_linear
    return mix(outputs, log_weights, sums_to_one)
