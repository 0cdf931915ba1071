"""What probing a detector finds, batch by batch: arrays that can be joined, stored and read again.

Letters: n detections, g ground truths, p pairs of a ground truth and one of its positive anchors, R routing rows,
E experts.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NO_ROW = -1
_SEPARATOR = '|'


@dataclass
class LayerFindings:
    """The routing rows of one layer and which of them served what.

    Attributes:
        image_ids: (R,) image of each row.
        levels: (R,) level of each row, 0 where a row serves all levels.
        patches: (R,) patch of each row, 0 without patches.
        weights: (R, E) mixture weights.
        probs: (R, E) gate probabilities.
        detection_rows: (n,) for a layer that decides once per level of the head's pyramid, the row of each
            detection's anchor; else ``NO_ROW``.
        positive_rows: (p,) likewise, the row of each positive anchor.
        truth_rows: (g,) for any other layer, which decides once per image or patch of it, the row at each ground
            truth's centre; else ``NO_ROW``.
    """

    image_ids: np.ndarray
    levels: np.ndarray
    patches: np.ndarray
    weights: np.ndarray
    probs: np.ndarray
    detection_rows: np.ndarray
    positive_rows: np.ndarray
    truth_rows: np.ndarray


_ROW_NUMBERS = ('detection_rows', 'positive_rows', 'truth_rows')


@dataclass
class Findings:
    """What was found on some images.

    Attributes:
        image_ids: (N,) images, in order.
        detections: (n, 7) image id, x, y, width, height in original pixels, score, category id.
        detection_levels: (n,) pyramid level of each detection; -1 where it cannot be followed.
        truths: (g,) annotation ids of the ground truths, crowds excluded.
        positives: (p, 2) annotation id and pyramid level of each positive anchor.
        layers: by layer path.
        conditions: detections under other routings, by the name of the condition.
    """

    image_ids: np.ndarray
    detections: np.ndarray
    detection_levels: np.ndarray
    truths: np.ndarray
    positives: np.ndarray
    layers: dict[str, LayerFindings]
    conditions: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Writes a NumPy archive, complete or not at all."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.type == 'np.ndarray'}
        for layer, found in self.layers.items():
            for field in dataclasses.fields(found):
                arrays[_SEPARATOR.join(('layers', layer, field.name))] = getattr(found, field.name)
        for name, detections in self.conditions.items():
            arrays[_SEPARATOR.join(('conditions', name))] = detections
        unfinished = path.with_suffix('.tmp')
        with open(unfinished, 'wb') as file:
            np.savez_compressed(file, **arrays)
        os.replace(unfinished, path)

    @staticmethod
    def load(path: Path) -> Findings:
        """Reads what :meth:`save` wrote."""
        plain, layers, conditions = {}, {}, {}
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays:
                parts = key.split(_SEPARATOR)
                if parts[0] == 'layers':
                    layers.setdefault(parts[1], {})[parts[2]] = arrays[key]
                elif parts[0] == 'conditions':
                    conditions[parts[1]] = arrays[key]
                else:
                    plain[key] = arrays[key]
        found = {layer: LayerFindings(**values) for layer, values in layers.items()}
        return Findings(**plain, layers=found, conditions=conditions)


def join(parts: Sequence[Findings]) -> Findings:
    """Joins findings on different images; row numbers are shifted to the joined tables."""
    plain = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in dataclasses.fields(Findings)
        if f.type == 'np.ndarray'
    }
    layers = {name: _join_layer([part.layers[name] for part in parts]) for name in parts[0].layers}
    conditions = {name: np.concatenate([part.conditions[name] for part in parts]) for name in parts[0].conditions}
    return Findings(**plain, layers=layers, conditions=conditions)


def _join_layer(parts: Sequence[LayerFindings]) -> LayerFindings:
    first = np.cumsum([0, *(len(part.image_ids) for part in parts[:-1])])
    values = {}
    for field in dataclasses.fields(LayerFindings):
        columns = [getattr(part, field.name) for part in parts]
        if field.name in _ROW_NUMBERS:
            columns = [np.where(c == NO_ROW, NO_ROW, c + shift) for c, shift in zip(columns, first, strict=True)]
        values[field.name] = np.concatenate(columns)
    return LayerFindings(**values)
