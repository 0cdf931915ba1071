"""Routing records: detached decisions, kept only while a recorder asks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .router import Router, find_routers
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


class _Recorder:
    """Attaches to every router of a model, beside other recorders: from start to stop, or as a context manager."""

    def __init__(self, model: nn.Module) -> None:
        self.routers = find_routers(model)
        self._receivers = {name: self._receiver(name) for name in self.routers}

    def start(self):
        """Listens from now on; returns the recorder."""
        for name, router in self.routers.items():
            router.recorders.append(self._receivers[name])
        return self

    def stop(self) -> None:
        """Listens no longer."""
        for name, router in self.routers.items():
            if self._receivers[name] in router.recorders:
                router.recorders.remove(self._receivers[name])

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception) -> None:
        self.stop()

    def _receiver(self, name: str):
        def receive(router: Router, routing: Routing, layout: RowLayout) -> None:
            # a copy: what a routing caches here, without gradient, must not reach the step's auxiliary loss
            with torch.no_grad():
                self.receive(name, dataclasses.replace(routing), layout)

        return receive

    def receive(self, layer: str, routing: Routing, layout: RowLayout) -> None:
        """Takes the routing of one call."""
        raise NotImplementedError(f'{type(self).__name__} does not define receive()')


class RoutingRecorder(_Recorder):
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
        """Names the images of the next batch, in order; levels are counted anew."""
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
        weights = routing.dense(routing.weights, 0.0).detach().cpu()
        probs = routing.probs.detach().cpu()
        ids = self._image_ids[images]
        self.records.append(RoutingRecord(layer, weights, probs, ids, levels, patches, layout.unit, map_sizes))


class UsageRecorder(_Recorder):
    """Sums the usage of each layer's experts in this process; keeps no rows.

    Args:
        model: a model with MoE layers.

    Attributes:
        usage: by layer.
        left_out: number of images at the end of a batch that do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.usage: dict[str, Usage] = {}
        self.left_out = 0

    def receive(self, layer: str, routing: Routing, layout: RowLayout) -> None:
        if self.left_out:
            routing = routing.only(layout.images() < layout.num_images - self.left_out)
        usage = routing.local_usage().detached()
        self.usage[layer] = self.usage[layer] + usage if layer in self.usage else usage
