"""Positions in a batch of images, and the routing row that decided about each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..analysis.units import NO_ROW
from ..common.image_frame import Frame
from ..routing.rows import patch_numbers


@dataclass(frozen=True)
class Truth:
    """The ground truths of one image, crowds excluded.

    Attributes:
        numbers: (g,) numbers of the objects in the :class:`~moe_det.analysis.ground_truth.GroundTruth`.
        boxes: (g, 4) x, y, width, height in original pixels.
        labels: (g,) class labels as the detector counts them.
    """

    numbers: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    def resized(self, meta: Mapping) -> Tensor:
        """(g, 4) boxes x1, y1, x2, y2 in pixels of the input."""
        x, y, width, height = self.boxes.reshape(-1, 4).T
        corners = np.stack([x, y, x + width, y + height], axis=1)
        return torch.as_tensor(Frame.of(meta).to_input(corners), dtype=torch.float32)


@dataclass
class Places:
    """Positions that rows are looked up for.

    Attributes:
        images: (n,) number of the image in the batch.
        levels: (n,) level; -1 where it is not known.
        y: (n,) fraction of the padded input's height.
        x: (n,) fraction of its width.
        numbers: (n,) object query or region of interest at the place, -1 for none; None where places are anchors.
    """

    images: Tensor
    levels: Tensor
    y: Tensor
    x: Tensor
    numbers: Tensor | None = None

    @staticmethod
    def none() -> Places:
        """No places."""
        whole, real = torch.zeros(0, dtype=torch.long), torch.zeros(0)
        return Places(whole, whole, real, real, whole)

    def no_rows(self) -> np.ndarray:
        """(n,) ``NO_ROW`` for every place."""
        return np.full(len(self.images), NO_ROW)


def centres(truths: Sequence[Truth], samples: Sequence, inputs: Tensor) -> Places:
    """Centres of the ground truths, at level 0."""
    height, width = inputs.shape[-2:]
    numbers, y, x = [], [], []
    for image, (truth, sample) in enumerate(zip(truths, samples, strict=True)):
        boxes = truth.resized(sample.metainfo)
        numbers.append(torch.full((len(boxes),), image))
        y.append((boxes[:, 1] + boxes[:, 3]) / 2 / height)
        x.append((boxes[:, 0] + boxes[:, 2]) / 2 / width)
    images = torch.cat(numbers)
    return Places(images, torch.zeros_like(images), torch.cat(y), torch.cat(x))


class RowTable:
    """Finds the row that decided about a place.

    Args:
        images: (R,) number of each row's image in the batch.
        levels: (R,) level of each row.
        patches: (R,) patch of each row.
    """

    def __init__(self, images: Tensor, levels: Tensor, patches: Tensor) -> None:
        self._span = int(patches.max()) + 1, int(levels.max()) + 1
        keys = self._keys(images, levels, patches)
        self._order = torch.argsort(keys)
        self._sorted = keys[self._order]

    def _keys(self, images: Tensor, levels: Tensor, patches: Tensor) -> Tensor:
        patch_span, level_span = self._span
        return (images * level_span + levels) * patch_span + patches

    def rows(self, places: Places, sizes: Mapping[int, tuple[int, int]], grid: int) -> np.ndarray:
        """(n,) row of each place, NO_ROW where there is none."""
        levels = places.levels
        patches = torch.zeros_like(places.images)
        if grid > 1:
            for level, (height, width) in sizes.items():
                at = levels == level
                y = (places.y[at] * height).long().clamp(0, height - 1)
                x = (places.x[at] * width).long().clamp(0, width - 1)
                patches[at] = patch_numbers(y, x, height, width, grid)
        return self._found(places.images, levels, patches)

    def numbered_rows(self, places: Places) -> np.ndarray:
        """(n,) row of the query or region at each place, where each has a row, as patches have, on one level."""
        assert places.numbers is not None  # of queries or regions
        return self._found(places.images, places.numbers.clamp_max(0), places.numbers.clamp_min(0))

    def _found(self, images: Tensor, levels: Tensor, patches: Tensor) -> np.ndarray:
        nowhere = levels < 0
        keys = self._keys(images, levels.clamp_min(0), patches)
        found = torch.searchsorted(self._sorted, keys).clamp_max(len(self._sorted) - 1)
        missing = (self._sorted[found] != keys) | nowhere
        return torch.where(missing, torch.tensor(NO_ROW), self._order[found]).numpy()
