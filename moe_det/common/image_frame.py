"""Where an image lies in what the network is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frame:
    """Where the pixels of an original image lie in the input: at ``original * scale + offset``.

    Attributes:
        scale: (2,) x, y.
        offset: (2,) x, y in pixels of the input; not 0 where a test pipeline centres images, as CenterNet's does.
        end: (2,) x, y where the image ends and padding begins; None where the pipeline does not say.
    """

    scale: np.ndarray
    offset: np.ndarray
    end: np.ndarray | None

    @staticmethod
    def of(meta: Mapping) -> Frame:
        """As the metadata say: ``scale_factor``, ``ori_shape`` and the ``border`` of mmdet's RandomCenterCropPad."""
        scale = np.asarray(meta.get('scale_factor', (1.0, 1.0)), dtype=np.float64)[:2]
        border = meta.get('border')  # top, bottom, left, right
        if border is not None:
            top, bottom, left, right = (float(side) for side in border)
            return Frame(scale, np.array([left, top]), np.array([right, bottom]))
        shape = meta.get('ori_shape')
        end = None if shape is None else np.round(np.array([shape[1], shape[0]], dtype=np.float64) * scale)
        return Frame(scale, np.zeros(2), end)

    def to_input(self, points: np.ndarray) -> np.ndarray:
        """(..., 2 n) x, y of original pixels, in pixels of the input."""
        pairs = points.shape[-1] // 2
        return points * np.tile(self.scale, pairs) + np.tile(self.offset, pairs)

    def to_original(self, points: np.ndarray) -> np.ndarray:
        """(..., 2 n) x, y of pixels of the input, in original pixels."""
        pairs = points.shape[-1] // 2
        return (points - np.tile(self.offset, pairs)) / np.tile(self.scale, pairs)
