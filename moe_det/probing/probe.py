"""Runs a detector over images under its own and under other routings, and keeps what the analysis needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from ..analysis.units import NO_ROW
from ..routing.gates import global_average
from ..routing.intervention import intervene
from ..routing.records import RoutingRecord, RoutingRecorder
from ..routing.router import find_routers
from ..routing.rows import RowLayout
from .assignment import cannot_assign, positive_anchors
from .conditions import NATURAL, Condition
from .findings import Findings, LayerFindings
from .kept_outputs import keep_outputs
from .losses import cannot_compute_losses, image_losses
from .places import Places, RowTable, Truth, centres
from .provenance import ProvenanceRecorder, cannot_follow, locations
from .queries import (
    QueryRecorder,
    cannot_follow_queries,
    cannot_match_queries,
    makes_queries,
    matched_queries,
    query_layers,
)
from .regions import region_extractor, region_levels


class Probe:
    """Asks a detector about batches of images.

    Args:
        model: in eval mode, with MoE layers.
        conditions: routings to evaluate besides the detector's own.
        grids: cells per axis of the layers that route patches, by layer; others may be absent.
        rows: whether to keep the routing rows of the detector's own routing, and what they served. A second pass over
            the same images, with other conditions, does without.
    """

    def __init__(
        self,
        model: nn.Module,
        conditions: Sequence[Condition] = (),
        grids: Mapping[str, int] | None = None,
        rows: bool = True,
    ) -> None:
        self.model = model
        self.head = getattr(model, 'bbox_head', None)
        self.conditions = list(conditions)
        self.grids = dict(grids or {})
        self.rows = rows
        self.routers = find_routers(model)
        self.of_queries = makes_queries(self.head)
        follow, assign = (
            (cannot_follow_queries, cannot_match_queries) if self.of_queries else (cannot_follow, cannot_assign)
        )
        self.no_provenance = follow(self.head)
        self.no_assignment = self.no_provenance or assign(self.head)
        self.query_layers = query_layers(model)
        self.regions = region_extractor(model)
        if self.regions is not None:
            self.no_assignment = None
        self.no_losses = cannot_compute_losses(self.head)
        self._asks_losses = any(condition.losses for condition in self.conditions)

    @torch.no_grad()
    def __call__(self, images: Sequence[int], batch: dict, truths: Sequence[Truth]) -> Findings:
        """Probes one batch.

        Args:
            images: position of each image among all.
            batch: as the test data loader gives it.
            truths: ground truths of each image.
        """
        data = self.model.data_preprocessor(batch, False)
        inputs, samples = data['inputs'], data['data_samples']
        found, losses = {}, {}
        with self._provenance() as provenance:

            def predict(name: str, with_losses: bool) -> list:
                # copies: predict() writes its results into the samples
                copies = [sample.clone() for sample in samples]
                results = [s.pred_instances for s in self.model.predict(inputs, copies, rescale=True)]
                found[name] = detection_table(results, images)
                if with_losses:
                    losses[name] = self._losses(provenance, truths, samples)
                return results

            with ExitStack() as stack:
                if self.conditions:
                    # experts of the head run once; every routing that leaves the features alone mixes their outputs
                    stack.enter_context(keep_outputs(getattr(self.head, 'experts_on_features', ())))
                with RoutingRecorder(self.model) as recorder, self._gate_features() as seen:
                    recorder.start_batch(range(len(images)))
                    features = self.model.extract_feat(inputs)
                    with _features(self.model, features):
                        results = predict(NATURAL, self._asks_losses)
                outputs, map_sizes = (provenance.outputs, provenance.map_sizes) if provenance else ((), [])
                for condition in self.conditions:
                    if condition.keeps_features:
                        with _features(self.model, features), self._under(condition, images):
                            predict(condition.name, condition.losses)
            for condition in self.conditions:
                if not condition.keeps_features:
                    with self._under(condition, images):
                        predict(condition.name, condition.losses)
        natural = found.pop(NATURAL)
        owners, positives, layers = np.zeros(0, dtype=np.int64), Places.none(), {}
        if self.rows:
            detections = self._detection_places(results, map_sizes)
            owners, positives = self._positives(outputs, map_sizes, samples, truths, inputs)
            places = detections, positives, centres(truths, samples, inputs)
            for layer in self.routers:
                records = [record for record in recorder.records if record.layer == layer]
                layers[layer] = self._layer(records, seen[layer], len(map_sizes), np.asarray(images), places)
        return Findings(
            image_ids=np.asarray(images, dtype=np.int64),
            detections=natural,
            truths=np.concatenate([truth.numbers for truth in truths]).astype(np.int64),
            positives=np.stack([owners, positives.levels.numpy()], axis=1),
            layers=layers,
            conditions={condition.name: found[condition.name] for condition in self.conditions},
            losses=losses,
        )

    def _provenance(self) -> AbstractContextManager[ProvenanceRecorder | QueryRecorder | None]:
        if self.no_provenance:
            return nullcontext()
        return QueryRecorder(self.head) if self.of_queries else ProvenanceRecorder(self.head)

    def _under(self, condition: Condition, images: Sequence[int]) -> AbstractContextManager[None]:
        condition.start_batch(images)
        return intervene(self.model, condition.interventions)

    def _losses(self, provenance: ProvenanceRecorder | None, truths: Sequence[Truth], samples: list) -> np.ndarray:
        if self.no_losses:
            return np.full(len(truths), np.nan)
        return image_losses(self.head, provenance.outputs, truths, [sample.metainfo for sample in samples])

    @contextmanager
    def _gate_features(self) -> Iterator[dict[str, list[Tensor]]]:
        """Collects the spatial means of what each gate is given, call by call."""
        seen: dict[str, list[Tensor]] = {name: [] for name in self.routers}

        def listen(name: str) -> Callable:
            def see(_: nn.Module, arguments: tuple) -> None:
                rows: Sequence[Tensor] = arguments[0]
                layout: RowLayout = arguments[1]
                means = [global_average(of_level).float() for of_level in rows]
                seen[name].append((torch.stack(means).mean(0) if layout.unit == 'image' else torch.cat(means)).cpu())

            return see

        handles = []
        if self.rows:
            handles = [router.register_forward_pre_hook(listen(name)) for name, router in self.routers.items()]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    # -- where detections and objects lie ----------------------------------------------------------------------

    def _detection_places(self, results: Sequence, map_sizes: Sequence) -> Places:
        counts = torch.tensor([len(found.scores) for found in results])
        images = torch.arange(len(results)).repeat_interleave(counts)
        if not map_sizes:
            nowhere = torch.full_like(images, NO_ROW)
            return Places(images, nowhere, torch.zeros(len(images)), torch.zeros(len(images)))
        levels = torch.cat([found.level.cpu() for found in results])
        anchors = torch.cat([found.anchor.cpu() for found in results])
        return self._anchor_places(images, levels, anchors, map_sizes)

    def _anchor_places(self, images: Tensor, levels: Tensor, anchors: Tensor, sizes: Sequence) -> Places:
        y, x = torch.zeros(len(images)), torch.zeros(len(images))
        if self.of_queries:
            return Places(images, levels, y, x, anchors)
        for level, (height, width) in enumerate(sizes):
            at = levels == level
            row, column = locations(self.head, level, anchors[at], width)
            y[at], x[at] = (row + 0.5) / height, (column + 0.5) / width
        return Places(images, levels, y, x)

    def _positives(
        self, outputs: Sequence, map_sizes: Sequence, samples: list, truths: Sequence[Truth], inputs: Tensor
    ) -> tuple[np.ndarray, Places]:
        if self.no_assignment is not None:
            return np.zeros(0, dtype=np.int64), Places.none()
        if self.regions is not None:
            return np.concatenate([truth.numbers for truth in truths]), self._regions_of(truths, samples, inputs)
        metas = [sample.metainfo for sample in samples]
        boxes = [truth.resized(meta).to(inputs.device) for truth, meta in zip(truths, metas, strict=True)]
        labels = [torch.as_tensor(truth.labels, device=inputs.device) for truth in truths]
        assign = matched_queries if self.of_queries else positive_anchors
        found = assign(self.head, outputs, boxes, labels, metas)
        owners, images, levels, anchors = [], [], [], []
        for image, (truth, per_level) in enumerate(zip(truths, found, strict=True)):
            for level, (anchor, number) in enumerate(per_level):
                owners.append(truth.numbers[number.numpy()])
                images.append(torch.full_like(anchor, image))
                levels.append(torch.full_like(anchor, level))
                anchors.append(anchor)
        places = self._anchor_places(torch.cat(images), torch.cat(levels), torch.cat(anchors), map_sizes)
        return np.concatenate(owners).astype(np.int64), places

    def _regions_of(self, truths: Sequence[Truth], samples: list, inputs: Tensor) -> Places:
        """Centres of the ground truths at the levels that their boxes are pooled from."""
        boxes = torch.cat([truth.resized(sample.metainfo) for truth, sample in zip(truths, samples, strict=True)])
        return dataclasses.replace(centres(truths, samples, inputs), levels=region_levels(self.regions, boxes))

    # -- rows --------------------------------------------------------------------------------------------------

    def _layer(
        self,
        records: Sequence[RoutingRecord],
        features: Sequence[Tensor],
        pyramid: int,
        image_ids: np.ndarray,
        places: Sequence[Places],
    ) -> LayerFindings:
        images = torch.cat([record.image_ids for record in records])
        levels = torch.cat([record.levels for record in records])
        patches = torch.cat([record.patches for record in records])
        sizes = {level: size for record in records for level, size in record.map_sizes.items()}
        unit = records[0].unit
        # a layer that decides once per level of the head's pyramid; any other decides once per image
        by_level = unit != 'image' and pyramid > 1 and int(levels.max()) == pyramid - 1
        if self.regions is not None:  # whose pyramid may have more levels than regions are pooled from
            by_level = unit != 'image' and int(levels.max()) > 0
        grid = self.grids.get(records[0].layer, 1) if unit == 'patch' else 1
        table = RowTable(images, levels, patches)
        detections, positives, of_truths = places
        if records[0].layer in self.query_layers:
            rows = (table.rows_of_queries(detections), table.rows_of_queries(positives), of_truths.no_rows())
        elif by_level:
            rows = (table.rows(detections, sizes, grid), table.rows(positives, sizes, grid), of_truths.no_rows())
        else:
            rows = (detections.no_rows(), positives.no_rows(), table.rows(of_truths, sizes, grid))
        return LayerFindings(
            image_ids=image_ids[images.numpy()],
            levels=levels.numpy(),
            patches=patches.numpy(),
            weights=torch.cat([record.weights for record in records]).float().numpy(),
            probs=torch.cat([record.probs for record in records]).float().numpy(),
            features=torch.cat(list(features)).numpy(),
            detection_rows=rows[0],
            positive_rows=rows[1],
            truth_rows=rows[2],
        )


def detection_table(results: Sequence, images: Sequence[int]) -> np.ndarray:
    """Detections as the analysis takes them, see :class:`~moe_det.probing.findings.Findings`.

    Args:
        results: ``pred_instances`` of each image, in original pixels; with a field ``level`` where it is known.
        images: position of each image.

    Returns:
        (n, 8).
    """
    tables = [np.zeros((0, 8))]
    for image, found in zip(images, results, strict=True):
        boxes = found.bboxes.cpu().double().numpy().reshape(-1, 4)
        table = np.empty((len(boxes), 8))
        table[:, 0] = image
        table[:, 1:3] = boxes[:, :2]
        table[:, 3:5] = boxes[:, 2:4] - boxes[:, :2]
        table[:, 5] = found.scores.cpu().numpy()
        table[:, 6] = found.labels.cpu().numpy()
        table[:, 7] = found.level.cpu().numpy() if 'level' in found else NO_ROW
        tables.append(table)
    return np.concatenate(tables)


@contextmanager
def _features(model: nn.Module, features):
    """Lets the detector find these features instead of computing them again."""
    extract: Callable = lambda *args, **kwargs: features  # noqa: E731
    model.extract_feat = extract
    try:
        yield
    finally:
        del model.extract_feat
