"""Every detection with the object query or region of interest that made it and the experts that this ran."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..analysis.ground_truth import GroundTruth
from ..analysis.inputs import QUERY, REGION, LayerInfo
from ..probing.findings import Findings

NUMBERS = {QUERY: 'query', REGION: 'region'}  # column of the number, by the unit of layers
FILES = {QUERY: 'queries.csv', REGION: 'regions.csv'}


def write_detections(
    folder: Path, findings: Findings, matches: np.ndarray, ground_truth: GroundTruth, infos: Sequence[LayerInfo]
) -> None:
    """Writes a table with a line per detection; nothing where no layer decides about queries or regions.

    Columns are the image, the number of the query or region in it, the box in original pixels, the annotation that
    COCO's rules match to the detection (empty for none), and per layer the experts that the query or region ran, the
    heaviest first.

    Args:
        folder: of the file ``queries.csv`` or ``regions.csv``.
        findings: on all images.
        matches: (g,) detection that each object is matched by, -1 where none.
        ground_truth: the objects.
        infos: of the layers.
    """
    units = {info.name: info.unit for info in infos if info.unit in FILES}  # a detector has queries or regions
    if not units:
        return
    names, unit = list(units), next(iter(units.values()))
    annotation = np.full(len(findings.detections), '', dtype=object)
    found = np.flatnonzero(matches >= 0)
    annotation[matches[found]] = [ground_truth.annotation_ids[number] for number in found]
    layers = [findings.layers[name] for name in names]
    experts = [[_experts(row) for row in layer.weights[layer.detection_rows]] for layer in layers]
    numbers = layers[0].patches[layers[0].detection_rows]
    columns = ['image_id', NUMBERS[unit], 'category', 'score', 'x', 'y', 'width', 'height', 'area', 'annotation_id']
    with open(folder / FILES[unit], 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *names])
        for number, (image, x, y, width, height, score, label, _) in enumerate(findings.detections.tolist()):
            box = [f'{value:.6g}' for value in (score, x, y, width, height, width * height)]
            own = [of_layer[number] for of_layer in experts]
            place = [ground_truth.image_ids[int(image)], numbers[number], ground_truth.category_names[int(label)]]
            writer.writerow([*place, *box, annotation[number], *own])


def _experts(weights: np.ndarray) -> str:
    """The experts of positive weight, the heaviest first: ``2`` or ``2 0``."""
    order = np.argsort(-weights, kind='stable')
    return ' '.join(str(expert) for expert in order if weights[expert] > 0)
