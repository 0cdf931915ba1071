"""Runs a detector over images under its own and under other routings, and keeps what the analysis needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from torch import Tensor, nn

from ..routing.gates import global_average
from ..routing.intervention import intervene
from ..routing.records import RoutingRecord, RoutingRecorder
from ..routing.regions import ROI
from ..routing.router import find_routers
from ..routing.rows import RowLayout
from .conditions import NATURAL, Condition
from .findings import Findings, LayerFindings, detection_table
from .following import QueryFollowing, Seen, following
from .kept_outputs import keep_outputs
from .losses import cannot_compute_losses, image_losses
from .places import Places, RowTable, Truth, centres
from .tokens import TokenMaps, token_layers, tokens_of

MOST_FEATURES = 64  # of a region


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
        model: BaseDetector,
        conditions: Sequence[Condition] = (),
        grids: Mapping[str, int] | None = None,
        rows: bool = True,
    ) -> None:
        self.model = model
        self.head: Any = getattr(model, 'bbox_head', None)
        self.conditions = list(conditions)
        self.grids = dict(grids or {})
        self.rows = rows
        self.routers = find_routers(model)
        self.following = following(model)
        self.tokens = token_layers(model)
        self.no_losses = cannot_compute_losses(self.head)
        self._asks_losses = any(condition.losses for condition in self.conditions)

    @property
    def of_queries(self) -> bool:
        """Whether detections are made by object queries."""
        return isinstance(self.following, QueryFollowing)

    @property
    def no_provenance(self) -> str | None:
        """Why detections cannot be followed to a level or a query, or None."""
        return self.following.no_provenance

    @property
    def no_assignment(self) -> str | None:
        """Why there is no training unit, or None."""
        return self.following.no_assignment

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
        with self.following.recorder() as provenance:

            def predict(name: str, with_losses: bool) -> list:
                # copies: predict() writes its results into the samples
                copies = [sample.clone() for sample in samples]
                results = [s.pred_instances for s in self.model.predict(inputs, copies, rescale=True)]
                found[name] = detection_table(results, images)
                if with_losses:
                    losses[name] = self._losses(provenance.outputs if provenance else (), truths, samples)
                return results

            with ExitStack() as stack:
                if self.conditions:
                    # experts of the head run once; every routing that leaves the features alone mixes their outputs
                    stack.enter_context(keep_outputs(getattr(self.head, 'experts_on_features', ())))
                maps = stack.enter_context(TokenMaps(self.model)) if self.tokens else None
                with RoutingRecorder(self.model) as recorder, self._gate_features() as features_of:
                    recorder.start_batch(range(len(images)))
                    features = self.model.extract_feat(inputs)
                    with _features(self.model, features):
                        results = predict(NATURAL, self._asks_losses)
                kept = ('map_sizes', 'outputs', 'regions')  # what other routings would overwrite
                followed = {name: getattr(provenance, name) for name in kept if hasattr(provenance, name)}
                seen = Seen(results, samples, truths, inputs, **followed)
                token_maps = maps.map_sizes or [features[-1].shape[-2:]] if maps else []
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
            owners, positives = self.following.positives(seen)
            places = self.following.detections(seen), positives, centres(truths, samples, inputs)
            tokens = tokens_of(truths, samples, inputs, token_maps) if self.tokens else None
            for layer in self.routers:
                records = [record for record in recorder.records if record.layer == layer]
                levels = len(seen.map_sizes)
                if tokens is not None and layer in self.tokens:
                    layers[layer] = _tokens_of_objects(records, features_of[layer], np.asarray(images), tokens, places)
                    continue
                layers[layer] = self._layer(records, features_of[layer], levels, np.asarray(images), places)
        return Findings(
            image_ids=np.asarray(images, dtype=np.int64),
            detections=natural,
            truths=np.concatenate([truth.numbers for truth in truths]).astype(np.int64),
            positives=np.stack([owners, positives.levels.numpy()], axis=1),
            layers=layers,
            conditions={condition.name: found[condition.name] for condition in self.conditions},
            losses=losses,
        )

    def _under(self, condition: Condition, images: Sequence[int]) -> AbstractContextManager[None]:
        condition.start_batch(images)
        return intervene(self.model, condition.interventions)

    def _losses(self, outputs: Sequence, truths: Sequence[Truth], samples: list) -> np.ndarray:
        if self.no_losses:
            return np.full(len(truths), np.nan)
        return image_losses(self.head, outputs, truths, [sample.metainfo for sample in samples])

    @contextmanager
    def _gate_features(self) -> Iterator[dict[str, list[Tensor]]]:
        """Collects the spatial means of what each gate is given, call by call."""
        seen: dict[str, list[Tensor]] = {name: [] for name in self.routers}

        def listen(name: str) -> Callable:
            def see(_: nn.Module, arguments: tuple) -> None:
                rows: Sequence[Tensor] = arguments[0]
                layout: RowLayout = arguments[1]
                means = [global_average(of_level).float() for of_level in rows]
                if layout.unit == ROI:
                    means = [_projected(of_level) for of_level in means]
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
        grid = self.grids.get(records[0].layer, 1) if unit == 'patch' else 1
        table = RowTable(images, levels, patches)
        detections, positives, of_truths = places
        if records[0].layer in self.following.numbered:
            table = RowTable(images, torch.zeros_like(levels), patches)
            rows = (table.numbered_rows(detections), table.numbered_rows(positives), of_truths.no_rows())
        elif unit == ROI:  # regions that are not followed have no place
            rows = (detections.no_rows(), positives.no_rows(), of_truths.no_rows())
        elif self.following.by_level(unit, int(levels.max()), pyramid):
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


def _tokens_of_objects(
    records: Sequence[RoutingRecord],
    features: Sequence[Tensor],
    image_ids: np.ndarray,
    tokens: Places,
    places: Sequence[Places],
) -> LayerFindings:
    """The rows of a layer that stand for objects; an image has too many tokens to keep them all."""
    images = torch.cat([record.image_ids for record in records])
    patches = torch.cat([record.patches for record in records])
    rows = RowTable(images, torch.zeros_like(images), patches).numbered_rows(tokens)
    kept, first, number = np.unique(rows, return_index=True, return_inverse=True)
    detections, positives, _ = places
    return LayerFindings(
        image_ids=image_ids[images[kept].numpy()],
        levels=tokens.levels[first].numpy(),
        patches=patches[kept].numpy(),
        weights=torch.cat([record.weights for record in records])[kept].float().numpy(),
        probs=torch.cat([record.probs for record in records])[kept].float().numpy(),
        features=torch.cat(list(features))[kept].numpy(),
        detection_rows=detections.no_rows(),
        positive_rows=positives.no_rows(),
        truth_rows=number.reshape(-1),
    )


@contextmanager
def _features(model: BaseDetector, features: Sequence[Tensor]) -> Iterator[None]:
    """Lets the detector find these features instead of computing them again."""
    model.extract_feat = lambda *args, **kwargs: features
    try:
        yield
    finally:
        del model.extract_feat


def _projected(features: Tensor) -> Tensor:
    """(R, C) features as at most ``MOST_FEATURES`` numbers, always by the same random directions.

    Regions are many and their features are long. A linear gate with random weights, which features are kept for, sees
    nearly the same through random directions.
    """
    if features.shape[1] <= MOST_FEATURES:
        return features
    directions = torch.randn(features.shape[1], MOST_FEATURES, generator=torch.Generator().manual_seed(0))
    return features @ directions.to(features) / MOST_FEATURES**0.5
