"""How detections and objects are followed to what decided about them: anchors, object queries, or regions of interest.

One class for each family of detectors; :func:`following` chooses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from torch import Tensor

from .assignment import cannot_assign, positive_anchors
from .places import Places, Truth, centres
from .provenance import ProvenanceRecorder, cannot_follow, locations
from .queries import (
    QueryRecorder,
    cannot_follow_queries,
    cannot_match_queries,
    makes_queries,
    matched_queries,
    query_layers,
)
from .regions import RegionRecorder, best_regions, region_extractor, region_layers, region_levels
from .tokens import token_layers


@dataclass(frozen=True)
class Seen:
    """One batch under the detector's own routing.

    Attributes:
        results: ``pred_instances`` of each image.
        samples: of each image.
        truths: ground truths of each image.
        inputs: (N, 3, H, W).
        map_sizes: (H, W) of each level of the head; of none where its detections are not followed.
        outputs: what the head's forward returned.
        regions: (R_i, 4) regions of interest of each image.
    """

    results: Sequence
    samples: Sequence
    truths: Sequence[Truth]
    inputs: Tensor
    map_sizes: Sequence[tuple[int, int]] = ()
    outputs: Sequence = ()
    regions: Sequence[Tensor] = ()

    @property
    def images(self) -> Tensor:
        """(n,) number of each detection's image."""
        return torch.arange(len(self.results)).repeat_interleave(torch.tensor([len(r.scores) for r in self.results]))

    def of_detections(self, field: str) -> Tensor:
        """(n,) ``level`` or ``anchor`` of each detection; images without any region have no such field."""
        found = [result[field].cpu() for result in self.results if field in result]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)


class Following:
    """A detector whose detections are not followed to anything; its objects are those at their centres.

    Args:
        model: the detector.

    Attributes:
        no_provenance: why detections cannot be followed, or None.
        no_assignment: why objects have no training unit, or None.
        numbered: layers whose rows are numbered as detections are: each row is a query or a region.
        conditioned_on: what the information about size is given, in words.
    """

    conditioned_on = 'nothing: objects of this detector cannot be followed to a level of a pyramid.'

    def __init__(self, model: BaseDetector) -> None:
        self.head: Any = getattr(model, 'bbox_head', None)
        self.no_provenance = cannot_follow(self.head)
        self.no_assignment = self.no_provenance
        self.numbered: list[str] = []

    def recorder(self) -> AbstractContextManager:
        """Adds ``level`` and ``anchor`` to the results while it is entered."""
        return nullcontext()

    def detections(self, seen: Seen) -> Places:
        """Places of the detections."""
        images, nowhere = seen.images, torch.zeros(len(seen.images))
        return Places(images, torch.full_like(images, -1), nowhere, nowhere)

    def positives(self, seen: Seen) -> tuple[np.ndarray, Places]:
        """(p,) objects and the places that they train; an object may have several or none."""
        return np.zeros(0, dtype=np.int64), Places.none()

    def by_level(self, unit: str, highest: int, levels: int) -> bool:
        """Whether a layer decides at the places' levels, and not once per image.

        Args:
            unit: of the layer.
            highest: level of its rows.
            levels: of the head.
        """
        return unit != 'image' and levels > 1 and highest == levels - 1


class AnchorFollowing(Following):
    """Dense heads: a detection comes from an anchor of a level."""

    conditioned_on = 'the level of the pyramid that an object is detected on, or trains.'
    assign: Callable[..., list[list[tuple[Tensor, Tensor]]]] = staticmethod(positive_anchors)

    def __init__(self, model: BaseDetector) -> None:
        super().__init__(model)
        self.no_assignment = cannot_assign(self.head)

    def recorder(self) -> AbstractContextManager:
        return ProvenanceRecorder(self.head)

    def detections(self, seen: Seen) -> Places:
        return self._places(seen.images, seen.of_detections('level'), seen.of_detections('anchor'), seen)

    def positives(self, seen: Seen) -> tuple[np.ndarray, Places]:
        if self.no_assignment is not None:
            return super().positives(seen)
        metas, device = [sample.metainfo for sample in seen.samples], seen.inputs.device
        boxes = [truth.resized(meta).to(device) for truth, meta in zip(seen.truths, metas, strict=True)]
        labels = [torch.as_tensor(truth.labels, device=device) for truth in seen.truths]
        owners, images, levels, anchors = [], [], [], []
        found = self.assign(self.head, seen.outputs, boxes, labels, metas)
        for image, (truth, per_level) in enumerate(zip(seen.truths, found, strict=True)):
            for level, (anchor, number) in enumerate(per_level):
                owners.append(truth.numbers[number.numpy()])
                images.append(torch.full_like(anchor, image))
                levels.append(torch.full_like(anchor, level))
                anchors.append(anchor)
        places = self._places(torch.cat(images), torch.cat(levels), torch.cat(anchors), seen)
        return np.concatenate(owners).astype(np.int64), places

    def _places(self, images: Tensor, levels: Tensor, anchors: Tensor, seen: Seen) -> Places:
        y, x = torch.zeros(len(images)), torch.zeros(len(images))
        for level, (height, width) in enumerate(seen.map_sizes):
            at = levels == level
            row, column = locations(self.head, level, anchors[at], width)
            y[at], x[at] = (row + 0.5) / height, (column + 0.5) / width
        return Places(images, levels, y, x)


class QueryFollowing(AnchorFollowing):
    """DETR's family: a detection comes from an object query, which has no level."""

    assign = staticmethod(matched_queries)

    def __init__(self, model: BaseDetector) -> None:
        Following.__init__(self, model)
        self.no_provenance = cannot_follow_queries(self.head)
        self.no_assignment = self.no_provenance or cannot_match_queries(self.head)
        self.numbered = query_layers(model)
        tokens = ''
        if token_layers(model):
            tokens = (
                " Encoder layers are asked given the level of the encoder's map: an object has the token nearest to "
                'its centre on the map whose stride fits its size, and only the tokens of objects count as rows.'
            )
        self.conditioned_on = Following.conditioned_on
        if not self.no_provenance:
            self.conditioned_on = (
                'the layer alone. Object queries have no level of a pyramid, so each decoder layer is asked by itself '
                'over all its queries. Where this page says "level", all queries are meant; a row is one query of an '
                'image. The training unit has the query that the matcher gives an object at the last decoder layer.'
            ) + tokens

    def recorder(self) -> AbstractContextManager:
        return nullcontext() if self.no_provenance else QueryRecorder(self.head)

    def detections(self, seen: Seen) -> Places:
        return Following.detections(self, seen) if self.no_provenance else super().detections(seen)

    def _places(self, images: Tensor, levels: Tensor, anchors: Tensor, seen: Seen) -> Places:
        nowhere = torch.zeros(len(images))
        return Places(images, levels, nowhere, nowhere, anchors)


class LevelFollowing(Following):
    """Two-stage detectors: objects have the level that their box is pooled from; detections are not followed."""

    conditioned_on = (
        'the level of the pyramid that the region of an object is pooled from. Detections of a second stage are '
        'followed where experts decide about regions, and here none do, so there is no detection unit; the training '
        'unit has every object at its centre.'
    )

    def __init__(self, model: BaseDetector) -> None:
        super().__init__(model)
        self.no_assignment = None
        self.extractor = region_extractor(model)

    def positives(self, seen: Seen) -> tuple[np.ndarray, Places]:
        boxes = torch.cat([t.resized(s.metainfo) for t, s in zip(seen.truths, seen.samples, strict=True)])
        middles = centres(seen.truths, seen.samples, seen.inputs)
        places = dataclasses.replace(middles, levels=region_levels(self.extractor, boxes))
        return np.concatenate([truth.numbers for truth in seen.truths]), places

    def by_level(self, unit: str, highest: int, levels: int) -> bool:
        return unit != 'image' and highest > 0  # whose pyramid may have more levels than regions are pooled from


class RegionFollowing(LevelFollowing):
    """Two-stage detectors with experts in their box heads: a detection comes from a region of interest."""

    conditioned_on = (
        'the level of the pyramid that a region is pooled from. A row of the box head is one region of an image. The '
        'detection unit has the region that became the detection; the training unit has every object, at its centre, '
        'and in the box head the region that overlaps it most (IoU 0.5 or more).'
    )

    def __init__(self, model: BaseDetector) -> None:
        super().__init__(model)
        self.no_provenance = None
        self.roi_head = model.roi_head
        self.numbered = region_layers(model)

    def recorder(self) -> AbstractContextManager:
        return RegionRecorder(self.roi_head, self.extractor)

    def detections(self, seen: Seen) -> Places:
        levels, numbers, images = seen.of_detections('level'), seen.of_detections('anchor'), seen.images
        height, width = seen.inputs.shape[-2:]
        y, x = torch.zeros(len(images)), torch.zeros(len(images))
        for image, regions in enumerate(seen.regions):
            at = images == image
            left, top, right, bottom = regions.cpu()[numbers[at]].unbind(1)
            y[at], x[at] = (top + bottom) / 2 / height, (left + right) / 2 / width
        return Places(images, levels, y, x, numbers)

    def positives(self, seen: Seen) -> tuple[np.ndarray, Places]:
        objects, places = super().positives(seen)
        boxes = [t.resized(s.metainfo) for t, s in zip(seen.truths, seen.samples, strict=True)]
        regions = seen.regions or [torch.zeros(0, 4)] * len(boxes)
        found = [best_regions(of_image.cpu(), box) for of_image, box in zip(regions, boxes, strict=True)]
        return objects, dataclasses.replace(places, numbers=torch.cat(found))


def following(model: BaseDetector) -> Following:
    """How detections of this detector are followed."""
    head = getattr(model, 'bbox_head', None)
    if makes_queries(head):
        return QueryFollowing(model)
    if region_extractor(model) is not None:
        return RegionFollowing(model) if region_layers(model) else LevelFollowing(model)
    return Following(model) if cannot_follow(head) else AnchorFollowing(model)
