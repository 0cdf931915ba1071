"""Every detection with the object query that made it and the experts that the query ran."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..analysis.ground_truth import GroundTruth
from ..analysis.inputs import QUERY, LayerInfo
from ..probing.findings import Findings

QUERIES_NAME = 'queries.csv'
COLUMNS = ('image_id', 'query', 'category', 'score', 'x', 'y', 'width', 'height', 'area', 'annotation_id')


def write_queries(
    path: Path, findings: Findings, matches: np.ndarray, ground_truth: GroundTruth, infos: Sequence[LayerInfo]
) -> None:
    """Writes a table with a line per detection; nothing where no layer decides about queries.

    Columns are the image, the number of the query, the box in original pixels, the annotation that COCO's rules match
    to the detection (empty for none), and per layer the experts that the query ran, the heaviest first.

    Args:
        path: the file to write.
        findings: on all images.
        matches: (g,) detection that each object is matched by, -1 where none.
        ground_truth: the objects.
        infos: of the layers.
    """
    names = [info.name for info in infos if info.unit == QUERY]
    if not names:
        return
    annotation = np.full(len(findings.detections), '', dtype=object)
    found = np.flatnonzero(matches >= 0)
    annotation[matches[found]] = [ground_truth.annotation_ids[number] for number in found]
    layers = [findings.layers[name] for name in names]
    experts = [[_experts(row) for row in layer.weights[layer.detection_rows]] for layer in layers]
    queries = layers[0].patches[layers[0].detection_rows]
    with open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *names])
        for number, (image, x, y, width, height, score, label, _) in enumerate(findings.detections.tolist()):
            box = [f'{value:.6g}' for value in (score, x, y, width, height, width * height)]
            own = [of_layer[number] for of_layer in experts]
            place = [ground_truth.image_ids[int(image)], queries[number], ground_truth.category_names[int(label)]]
            writer.writerow([*place, *box, annotation[number], *own])


def _experts(weights: np.ndarray) -> str:
    """The experts of positive weight, the heaviest first: ``2`` or ``2 0``."""
    order = np.argsort(-weights, kind='stable')
    return ' '.join(str(expert) for expert in order if weights[expert] > 0)
