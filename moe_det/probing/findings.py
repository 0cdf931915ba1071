"""What probing a detector finds, batch by batch: arrays that can be joined, stored and read again.

Images and objects are numbered as in :class:`~moe_det.analysis.ground_truth.GroundTruth`. Letters: N images,
n detections, g ground truths, p pairs of a ground truth and one of its positive anchors, R routing rows, E experts,
C channels.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..analysis.units import NO_ROW
from ..common.atomic_file import write_atomically

_SEPARATOR = '|'
_BY_NAME = ('conditions', 'losses')


@dataclass
class LayerFindings:
    """The routing rows of one layer and which of them served what.

    Attributes:
        image_ids: (R,) position of each row's image.
        levels: (R,) level of each row, 0 where a row serves all levels.
        patches: (R,) patch of each row, 0 without patches.
        weights: (R, E) mixture weights.
        probs: (R, E) gate probabilities.
        features: (R, C) spatial mean of the map that the gate sees, fp32; the levels' mean where a row serves all.
        detection_rows: (n,) for a layer that decides once per level of the head's pyramid, the row of each
            detection's anchor; else ``NO_ROW``.
        positive_rows: (p,) the same for the row of each positive anchor.
        truth_rows: (g,) for any other layer, which decides once per image or patch of it, the row at each ground
            truth's centre; else ``NO_ROW``.
    """

    image_ids: np.ndarray
    levels: np.ndarray
    patches: np.ndarray
    weights: np.ndarray
    probs: np.ndarray
    features: np.ndarray
    detection_rows: np.ndarray
    positive_rows: np.ndarray
    truth_rows: np.ndarray


_ROW_NUMBERS = ('detection_rows', 'positive_rows', 'truth_rows')


@dataclass
class Findings:
    """What was found on some images.

    Attributes:
        image_ids: (N,) positions of the images, in order.
        detections: (n, 8) image position, x, y, width, height in original pixels, score, label and pyramid level, -1
            where it cannot be followed.
        truths: (g,) numbers of the ground truths, crowds excluded.
        positives: (p, 2) number of the ground truth and pyramid level of each positive anchor.
        layers: by layer path.
        conditions: detections under other routings, by the name of the condition.
        losses: (N,) detection loss of each image, NaN where the head's cannot be had, by the name of the condition;
            :data:`~moe_det.probing.conditions.NATURAL` for the detector's own routing.
    """

    image_ids: np.ndarray
    detections: np.ndarray
    truths: np.ndarray
    positives: np.ndarray
    layers: dict[str, LayerFindings]
    conditions: dict[str, np.ndarray]
    losses: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def detection_levels(self) -> np.ndarray:
        """(n,) pyramid level of each detection; -1 where it cannot be followed."""
        return self.detections[:, 7].astype(np.int64)

    def save(self, path: Path) -> None:
        """Writes a NumPy archive, complete or not at all."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.type == 'np.ndarray'}
        for layer, found in self.layers.items():
            for of_layer in dataclasses.fields(found):
                arrays[_SEPARATOR.join(('layers', layer, of_layer.name))] = getattr(found, of_layer.name)
        for kind in _BY_NAME:
            for name, values in getattr(self, kind).items():
                arrays[_SEPARATOR.join((kind, name))] = values
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(path, content.getbuffer())

    @staticmethod
    def load(path: Path) -> Findings:
        """Reads what :meth:`save` wrote."""
        plain: dict[str, np.ndarray] = {}
        layers: dict[str, dict[str, np.ndarray]] = {}
        named: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in _BY_NAME}
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays:
                kind, *parts = key.split(_SEPARATOR)
                if kind == 'layers':
                    layers.setdefault(parts[0], {})[parts[1]] = arrays[key]
                elif kind in named:
                    named[kind][parts[0]] = arrays[key]
                else:
                    plain[key] = arrays[key]
        found = {layer: LayerFindings(**values) for layer, values in layers.items()}
        return Findings(**plain, layers=found, conditions=named['conditions'], losses=named['losses'])


def join(parts: Sequence[Findings]) -> Findings:
    """Joins findings on different images; row numbers are shifted to the joined tables."""
    plain = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in dataclasses.fields(Findings)
        if f.type == 'np.ndarray'
    }
    named = {
        kind: {name: np.concatenate([getattr(part, kind)[name] for part in parts]) for name in getattr(parts[0], kind)}
        for kind in _BY_NAME
    }
    layers = {name: _join_layer([part.layers[name] for part in parts]) for name in parts[0].layers}
    return Findings(**plain, layers=layers, conditions=named['conditions'], losses=named['losses'])


def _join_layer(parts: Sequence[LayerFindings]) -> LayerFindings:
    first = np.cumsum([0, *(len(part.image_ids) for part in parts[:-1])])
    values = {}
    for of_layer in dataclasses.fields(LayerFindings):
        columns = [getattr(part, of_layer.name) for part in parts]
        if of_layer.name in _ROW_NUMBERS:
            columns = [np.where(c == NO_ROW, NO_ROW, c + shift) for c, shift in zip(columns, first, strict=True)]
        values[of_layer.name] = np.concatenate(columns)
    return LayerFindings(**values)


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
