"""Runs a detector over images under its own and under other routings, and keeps what the analysis needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..routing.experts import keep_outputs
from ..routing.intervention import intervene
from ..routing.records import RoutingRecord, RoutingRecorder
from ..routing.router import find_routers
from ..routing.rows import patch_numbers
from .assignment import cannot_assign, positive_anchors
from .conditions import Condition
from .findings import NO_ROW, Findings, LayerFindings
from .provenance import ProvenanceRecorder, cannot_follow, locations


@dataclass(frozen=True)
class Truth:
    """The ground truths of one image, crowds excluded.

    Attributes:
        ids: (g,) annotation ids.
        boxes: (g, 4) x, y, width, height in original pixels.
        labels: (g,) class labels as the detector counts them.
    """

    ids: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


@dataclass
class _Places:
    """Positions that rows are looked up for: image of the batch, level, and fractions of the padded input."""

    images: Tensor
    levels: Tensor
    y: Tensor
    x: Tensor

    @staticmethod
    def none() -> _Places:
        whole, real = torch.zeros(0, dtype=torch.long), torch.zeros(0)
        return _Places(whole, whole, real, real)


class Probe:
    """Asks a detector about batches of images.

    Args:
        model: in eval mode, with MoE layers.
        category_ids: COCO category id of each label.
        conditions: routings to evaluate beside the detector's own.
        grids: cells per axis of the layers that route patches, by layer; others may be absent.
    """

    def __init__(
        self,
        model: nn.Module,
        category_ids: Sequence[int],
        conditions: Sequence[Condition] = (),
        grids: Mapping[str, int] | None = None,
    ) -> None:
        self.model = model
        self.head = getattr(model, 'bbox_head', None)
        self.category_ids = np.asarray(category_ids)
        self.conditions = list(conditions)
        self.grids = dict(grids or {})
        self.layers = list(find_routers(model))
        self.no_provenance = cannot_follow(self.head)
        self.no_assignment = self.no_provenance or cannot_assign(self.head)

    @torch.no_grad()
    def __call__(self, image_ids: Sequence[int], batch: dict, truths: Sequence[Truth]) -> Findings:
        """Probes one batch.

        Args:
            image_ids: COCO image id of each image.
            batch: as the test data loader gives it.
            truths: ground truths of each image.
        """
        data = self.model.data_preprocessor(batch, False)
        inputs, samples = data['inputs'], data['data_samples']
        with ExitStack() as stack:
            if self.conditions:
                # experts of the head run once; every routing that leaves the features alone mixes their outputs
                stack.enter_context(keep_outputs(getattr(self.head, 'experts_on_features', ())))
            with RoutingRecorder(self.model) as recorder, self._provenance() as provenance:
                recorder.start_batch(range(len(image_ids)))
                features = self.model.extract_feat(inputs)
                with _features(self.model, features):
                    results = self._predict(inputs, samples)
            other = {}
            for condition in self.conditions:
                if condition.keeps_features:
                    with _features(self.model, features), intervene(self.model, condition.interventions):
                        other[condition.name] = self._table(self._predict(inputs, samples), image_ids)
        for condition in self.conditions:
            if not condition.keeps_features:
                with intervene(self.model, condition.interventions):
                    other[condition.name] = self._table(self._predict(inputs, samples), image_ids)
        places = self._detection_places(results, provenance, inputs)
        owners, positives = self._positives(provenance, samples, truths, inputs)
        centres = _centres(truths, samples, inputs)
        layers = {}
        for layer in self.layers:
            records = [record for record in recorder.records if record.layer == layer]
            levels = len(provenance.map_sizes) if provenance else 0
            layers[layer] = self._layer(records, levels, np.asarray(image_ids), (places, positives, centres))
        return Findings(
            image_ids=np.asarray(image_ids, dtype=np.int64),
            detections=self._table(results, image_ids),
            detection_levels=places.levels.numpy(),
            truths=np.concatenate([truth.ids for truth in truths]).astype(np.int64),
            positives=np.stack([owners, positives.levels.numpy()], axis=1),
            layers=layers,
            conditions={condition.name: other[condition.name] for condition in self.conditions},
        )

    def _provenance(self) -> AbstractContextManager[ProvenanceRecorder | None]:
        return nullcontext() if self.no_provenance else ProvenanceRecorder(self.head)

    # -- detections --------------------------------------------------------------------------------------------

    def _predict(self, inputs: Tensor, samples: list) -> list:
        # copies: predict() writes its results into the samples
        return [s.pred_instances for s in self.model.predict(inputs, [s.clone() for s in samples], rescale=True)]

    def _table(self, results: Sequence, image_ids: Sequence[int]) -> np.ndarray:
        tables = []
        for image_id, found in zip(image_ids, results, strict=True):
            boxes = found.bboxes.cpu().double().numpy()
            table = np.empty((len(boxes), 7))
            table[:, 0] = image_id
            table[:, 1:3] = boxes[:, :2]
            table[:, 3:5] = boxes[:, 2:4] - boxes[:, :2]
            table[:, 5] = found.scores.cpu().numpy()
            table[:, 6] = self.category_ids[found.labels.cpu().numpy()]
            tables.append(table)
        return np.concatenate(tables)

    def _detection_places(self, results: Sequence, provenance: ProvenanceRecorder | None, inputs: Tensor) -> _Places:
        counts = torch.tensor([len(found.scores) for found in results])
        images = torch.arange(len(results)).repeat_interleave(counts)
        if provenance is None:
            nowhere = torch.full_like(images, NO_ROW)
            return _Places(images, nowhere, torch.zeros(len(images)), torch.zeros(len(images)))
        levels = torch.cat([found.level.cpu() for found in results])
        anchors = torch.cat([found.anchor.cpu() for found in results])
        return self._anchor_places(images, levels, anchors, provenance.map_sizes)

    def _anchor_places(self, images: Tensor, levels: Tensor, anchors: Tensor, sizes: Sequence) -> _Places:
        y, x = torch.zeros(len(images)), torch.zeros(len(images))
        for level, (height, width) in enumerate(sizes):
            at = levels == level
            row, column = locations(self.head, level, anchors[at], width)
            y[at], x[at] = (row + 0.5) / height, (column + 0.5) / width
        return _Places(images, levels, y, x)

    def _positives(
        self, provenance: ProvenanceRecorder | None, samples: list, truths: Sequence[Truth], inputs: Tensor
    ) -> tuple[np.ndarray, _Places]:
        if self.no_assignment is not None:
            return np.zeros(0, dtype=np.int64), _Places.none()
        metas = [sample.metainfo for sample in samples]
        boxes = [_resized(truth, meta).to(inputs.device) for truth, meta in zip(truths, metas, strict=True)]
        labels = [torch.as_tensor(truth.labels, device=inputs.device) for truth in truths]
        found = positive_anchors(self.head, provenance.outputs, boxes, labels, metas)
        owners, images, levels, anchors = [], [], [], []
        for image, (truth, per_level) in enumerate(zip(truths, found, strict=True)):
            for level, (anchor, number) in enumerate(per_level):
                owners.append(truth.ids[number.numpy()])
                images.append(torch.full_like(anchor, image))
                levels.append(torch.full_like(anchor, level))
                anchors.append(anchor)
        places = self._anchor_places(torch.cat(images), torch.cat(levels), torch.cat(anchors), provenance.map_sizes)
        return np.concatenate(owners).astype(np.int64), places

    # -- rows --------------------------------------------------------------------------------------------------

    def _layer(
        self, records: Sequence[RoutingRecord], pyramid: int, image_ids: np.ndarray, places: Sequence[_Places]
    ) -> LayerFindings:
        images = torch.cat([record.image_ids for record in records])
        levels = torch.cat([record.levels for record in records])
        patches = torch.cat([record.patches for record in records])
        sizes = {level: size for record in records for level, size in record.map_sizes.items()}
        unit = records[0].unit
        # a layer that decides once per level of the head's pyramid; any other decides once per image
        by_level = unit != 'image' and pyramid > 1 and int(levels.max()) == pyramid - 1
        grid = self.grids.get(records[0].layer, 1) if unit == 'patch' else 1
        table = _RowTable(images, levels, patches)
        detections, positives, centres = places
        return LayerFindings(
            image_ids=image_ids[images.numpy()],
            levels=levels.numpy(),
            patches=patches.numpy(),
            weights=torch.cat([record.weights for record in records]).float().numpy(),
            probs=torch.cat([record.probs for record in records]).float().numpy(),
            detection_rows=table.rows(detections, sizes, grid) if by_level else _no_rows(detections),
            positive_rows=table.rows(positives, sizes, grid) if by_level else _no_rows(positives),
            truth_rows=_no_rows(centres) if by_level else table.rows(centres, sizes, grid),
        )


def _no_rows(places: _Places) -> np.ndarray:
    return np.full(len(places.images), NO_ROW)


class _RowTable:
    """Finds the row that decided about a place."""

    def __init__(self, images: Tensor, levels: Tensor, patches: Tensor) -> None:
        self._span = int(patches.max()) + 1, int(levels.max()) + 1
        keys = self._keys(images, levels, patches)
        self._order = torch.argsort(keys)
        self._sorted = keys[self._order]

    def _keys(self, images: Tensor, levels: Tensor, patches: Tensor) -> Tensor:
        patch_span, level_span = self._span
        return (images * level_span + levels) * patch_span + patches

    def rows(self, places: _Places, sizes: Mapping[int, tuple[int, int]], grid: int) -> np.ndarray:
        """(n,) row of each place, NO_ROW where there is none."""
        levels = places.levels
        patches = torch.zeros_like(places.images)
        if grid > 1:
            for level, (height, width) in sizes.items():
                at = levels == level
                y = (places.y[at] * height).long().clamp(0, height - 1)
                x = (places.x[at] * width).long().clamp(0, width - 1)
                patches[at] = patch_numbers(y, x, height, width, grid)
        nowhere = levels < 0
        keys = self._keys(places.images, levels.clamp_min(0), patches)
        found = torch.searchsorted(self._sorted, keys).clamp_max(len(self._sorted) - 1)
        missing = (self._sorted[found] != keys) | nowhere
        return torch.where(missing, torch.tensor(NO_ROW), self._order[found]).numpy()


def _resized(truth: Truth, meta: dict) -> Tensor:
    """Boxes x1, y1, x2, y2 in pixels of the resized image."""
    scale = np.tile(np.asarray(meta.get('scale_factor', (1.0, 1.0)), dtype=np.float64)[:2], 2)
    x, y, width, height = truth.boxes.reshape(-1, 4).T
    return torch.as_tensor(np.stack([x, y, x + width, y + height], axis=1) * scale, dtype=torch.float32)


def _centres(truths: Sequence[Truth], samples: list, inputs: Tensor) -> _Places:
    height, width = inputs.shape[-2:]
    images, y, x = [], [], []
    for image, (truth, sample) in enumerate(zip(truths, samples, strict=True)):
        boxes = _resized(truth, sample.metainfo)
        images.append(torch.full((len(boxes),), image))
        y.append((boxes[:, 1] + boxes[:, 3]) / 2 / height)
        x.append((boxes[:, 0] + boxes[:, 2]) / 2 / width)
    images = torch.cat(images)
    return _Places(images, torch.zeros_like(images), torch.cat(y), torch.cat(x))


@contextmanager
def _features(model: nn.Module, features):
    """Lets the detector find these features instead of computing them again."""
    extract: Callable = lambda *args, **kwargs: features  # noqa: E731
    model.extract_feat = extract
    try:
        yield
    finally:
        del model.extract_feat
