"""Pictures of the size-specialisation report: what each expert likes most, and routings of single images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..analysis import gallery
from ..analysis.ground_truth import GroundTruth
from ..analysis.inputs import NUMBERED, TOKEN
from ..analysis.units import decides_per_image, detection_unit, token_unit, training_unit, unit_without_levels
from ..figures.pictures import Pictures, crop_object, draw_boxes
from ..probing.findings import Findings


class _Images:
    """Image files by position, read once; a file that cannot be read leaves its pictures out."""

    def __init__(self, paths: Sequence[str], ground_truth: GroundTruth, pictures: Pictures) -> None:
        self.paths, self.truth, self.pictures = paths, ground_truth, pictures
        self._made: dict[str, str | None] = {}

    def name(self, position: int) -> str:
        """File name of an image."""
        return Path(self.paths[position]).name

    def whole(self, position: int) -> str | None:
        """Picture of an image with its boxes coloured by size."""
        objects = self.truth.objects
        at = objects.of_image(position)
        return self._make(
            f'image-{position}', position, lambda image: draw_boxes(image, objects.boxes[at], objects.sizes[at])
        )

    def crop(self, number: int) -> str | None:
        """Cut-out of an object."""
        objects = self.truth.objects
        box, size = objects.boxes[number].tolist(), int(objects.sizes[number])
        return self._make(
            f'object-{number}', objects.image_ids[number], lambda image: crop_object(image, box, size=size)
        )

    def _make(self, name: str, position: int, draw) -> str | None:
        if name not in self._made:
            try:
                with Image.open(self.paths[position]) as file:
                    # boxes belong to the pixels as stored, as mmdet's and COCO's do: no EXIF rotation
                    self._made[name] = self.pictures.save(name, draw(file.convert('RGB')))
            except OSError:
                self._made[name] = None
        return self._made[name]


def add_pictures(
    results: dict,
    folder: Path,
    findings: Findings,
    matches: np.ndarray,
    ground_truth: GroundTruth,
    paths: Sequence[str],
) -> None:
    """Adds ``favourites`` of each layer and ``examples`` to the results and writes their pictures.

    Args:
        results: complete but for these.
        folder: of the results.
        findings: on all images.
        matches: (g,) detection that each object is matched by.
        ground_truth: the objects.
        paths: (N,) image files in the order of the ground truth.
    """
    images = _Images(paths, ground_truth, Pictures(folder))
    objects, ids = ground_truth.objects, ground_truth.image_ids
    for layer in results['layers']:
        found = findings.layers[layer['name']]
        if layer['unit'] == TOKEN:
            unit = token_unit(found, objects.sizes)
        elif layer['main_unit'] == 'detection':
            unit = detection_unit(found, matches, findings.detection_levels, objects.sizes)
        elif len(findings.positives):
            unit = training_unit(found, findings.positives, objects.sizes)
        else:
            unit = unit_without_levels(found, objects.sizes)
        layer['favourites'] = []
        for expert in range(layer['num_experts']):
            liked = []
            for position in gallery.favourite_objects(unit, found.probs, expert):
                by_level = not decides_per_image(found)
                entry = gallery.object_entry(ground_truth, unit, position, expert, by_level, layer['slots'])
                number = int(unit.objects[position])
                entry['file_name'] = images.name(int(objects.image_ids[number]))
                entry['picture'] = images.crop(number)
                liked.append(entry)
            whole = [
                {'image_id': ids[i], 'file_name': images.name(i), 'weight': weight, 'picture': images.whole(i)}
                for i, weight in gallery.favourite_images(found.weights, found.probs, found.image_ids, expert)
            ]
            layer['favourites'].append({'expert': expert, 'images': whole, 'objects': liked})
    results['examples'] = [
        {
            'image_id': ids[i],
            'file_name': images.name(i),
            'picture': images.whole(i),
            'objects': len(objects.of_image(i)),
            'layers': [
                {
                    'name': layer['name'],
                    'levels': _routing(findings.layers[layer['name']], i, layer['unit'] in NUMBERED),
                }
                for layer in results['layers']
            ],
        }
        for i in gallery.example_images(ground_truth)
    ]


def _routing(layer, position: int, mean: bool) -> list[dict]:
    """The weights of an image's rows, level by level; of queries or regions, which are many, their mean."""
    at = layer.image_ids == position
    found = []
    for level in np.unique(layer.levels[at]):
        rows = np.flatnonzero(at & (layer.levels == level))
        rows = rows[np.argsort(layer.patches[rows])]
        weights = layer.weights[rows]
        found.append({'level': int(level), 'weights': (weights.mean(0, keepdims=True) if mean else weights).tolist()})
    return found
