"""Tokens of the encoders of DETR's family: which of them stands for an object.

It is the token nearest to the object's centre, on the level of the encoder's maps that fits its size: the one whose
stride times four is nearest, on a logarithmic scale, to the square root of the box's area in resized pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.models.detectors import BaseDetector
from torch import Tensor, nn

from ..routing.router import find_routers
from ..routing.tokens import TOKEN
from .places import Places, Truth, centres
from .queries import makes_queries

ENCODER = 'encoder.'  # path of the encoder in every detector of the family
STRIDES = 4.0  # of an object's side: RetinaNet's smallest anchors have it


def token_layers(model: nn.Module) -> list[str]:
    """MoE layers of an encoder that decide about single tokens of the image."""
    if not makes_queries(getattr(model, 'bbox_head', None)):
        return []
    return [name for name, router in find_routers(model).items() if name.startswith(ENCODER) and router.unit == TOKEN]


class TokenMaps:
    """Context manager that notes the sizes of the maps whose tokens an encoder is given.

    Args:
        model: of DETR's family.

    Attributes:
        map_sizes: (H, W) of the maps of the last call, whose tokens follow each other; empty where the encoder is not
            told them, for it has a single map.
    """

    def __init__(self, model: BaseDetector) -> None:
        self._encoder = model.encoder
        self.map_sizes: list[tuple[int, int]] = []

    def __enter__(self) -> TokenMaps:
        self._handle = self._encoder.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *exception) -> None:
        self._handle.remove()

    def _note(self, encoder: nn.Module, arguments: tuple, named: dict) -> None:
        shapes = named.get('spatial_shapes')
        self.map_sizes = [] if shapes is None else [(height, width) for height, width in shapes.tolist()]


def tokens_of(
    truths: Sequence[Truth], samples: Sequence, inputs: Tensor, map_sizes: Sequence[tuple[int, int]]
) -> Places:
    """Places of the ground truths: their level, counted from 1, and the token that stands for each.

    Args:
        truths: of each image.
        samples: of each image.
        inputs: (N, 3, H, W).
        map_sizes: of the encoder's maps.
    """
    places = centres(truths, samples, inputs)
    boxes = torch.cat([truth.resized(sample.metainfo) for truth, sample in zip(truths, samples, strict=True)])
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp_min(1e-3).prod(1).sqrt()
    sizes = torch.tensor(map_sizes)
    strides = inputs.shape[-2] / sizes[:, 0]
    level = (strides * STRIDES / sides[:, None]).log2().abs().argmin(dim=1)
    height, width = sizes[level].unbind(1)
    first = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)])[level]
    row = (places.y * height).long().clamp_min(0).minimum(height - 1)
    column = (places.x * width).long().clamp_min(0).minimum(width - 1)
    return Places(places.images, level + 1, places.y, places.x, first + row * width + column)
