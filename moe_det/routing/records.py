"""Routing records: detached decisions, kept only while a recorder asks for them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .router import find_routers
from .routing import Routing, Usage
from .rows import RowLayout


@dataclass(frozen=True)
class RoutingRecord:
    """The rows that one layer decided about in one batch.

    Attributes:
        layer: module path of the layer.
        weights: (R, E) mixture weights, 0 for experts that were not chosen.
        probs: (R, E) gate probabilities.
        image_ids: (R,) id of each row's image, as given to :meth:`RoutingRecorder.start_batch`.
        levels: (R,) level of each row; 0 when the decision holds for all levels.
        patches: (R,) position of the patch inside its map, row by row, or of a token or region in its image; else 0.
        unit: as the layer's ``unit``.
        map_sizes: (H, W) of the map of each level, by level number.
    """

    layer: str
    weights: Tensor
    probs: Tensor
    image_ids: Tensor
    levels: Tensor
    patches: Tensor
    unit: str
    map_sizes: dict[int, tuple[int, int]]


RecorderT = TypeVar('RecorderT', bound='Recorder')


class Recorder:
    """Observes every router of a model: from start to stop, or as a context manager.

    Args:
        model: a model with MoE layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.routers = find_routers(model)
        self._handles: list[RemovableHandle] = []

    def start(self: RecorderT) -> RecorderT:
        """Starts recording; returns the recorder."""
        for name, router in self.routers.items():
            self._handles.append(router.decided.observe(functools.partial(self.receive, name)))
        return self

    def stop(self) -> None:
        """Listens no longer."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self: RecorderT) -> RecorderT:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def receive(self, layer: str, routing: Routing, layout: RowLayout) -> None:
        """Takes the routing of one call, without gradient."""
        raise NotImplementedError(f'{type(self).__name__} does not define receive()')


class RoutingRecorder(Recorder):
    """Keeps every routing row, on the CPU.

    Example:
        >>> with RoutingRecorder(model) as recorder:
        ...     recorder.start_batch([image_id])
        ...     model.test_step(data)
        >>> recorder.records

    Args:
        model: a model with MoE layers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.records: list[RoutingRecord] = []
        self.start_batch([])

    def start_batch(self, image_ids: Iterable[int]) -> None:
        """Names the images of the next batch, in order; the level count restarts."""
        self._image_ids = torch.as_tensor(list(image_ids), dtype=torch.long)
        self._next_level = dict.fromkeys(self.routers, 0)

    def receive(self, layer: str, routing: Routing, layout: RowLayout) -> None:
        images = layout.images()
        if len(self._image_ids) < layout.num_images:
            raise ValueError(f'the batch has {layout.num_images} images, start_batch() named {len(self._image_ids)}')
        # a layer that is called once per level counts its calls within the batch
        first = self._next_level[layer]
        levels = layout.levels() - layout.first_level + first
        self._next_level[layer] = first + len(layout.level_rows)
        map_sizes = {first + i: size for i, size in enumerate(layout.map_sizes)}
        patches = layout.numbers()
        weights = routing.over_experts(routing.weights, 0.0).detach().cpu()
        probs = routing.probs.detach().cpu()
        ids = self._image_ids[images]
        self.records.append(RoutingRecord(layer, weights, probs, ids, levels, patches, layout.unit, map_sizes))


class UsageRecorder(Recorder):
    """Sums the usage of each layer's experts in this process; keeps no rows.

    Args:
        model: a model with MoE layers.

    Attributes:
        usage: by layer, of each balance group.
        left_out: number of images at the end of a batch that do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.usage: dict[str, Usage] = {}
        self.left_out = 0

    def receive(self, layer: str, routing: Routing, layout: RowLayout) -> None:
        if self.left_out:
            routing = routing.only(layout.images() < layout.num_images - self.left_out)
        usage = routing.local_usage().without_gradient()
        self.usage[layer] = self.usage[layer] + usage if layer in self.usage else usage
