"""The token of an encoder that stands for an object."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from small_models import batch, build, family, initialise, predictions_of, records_of, spread_weights, with_experts

from moe_det.probing.layer_description import layer_infos, pyramid_levels
from moe_det.probing.places import Truth
from moe_det.probing.probe import Probe
from moe_det.probing.tokens import token_layers, tokens_of

LAYER = 'encoder.layers.1.ffn'
# strides of the maps for images of 64 pixels
FAMILIES = {
    'detr/detr_r50_8xb2-150e_coco.py': (32,),
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': (8, 16, 32, 64),
}
BOXES = [[2.0, 3, 30, 32], [40, 8, 20, 60], [0, 0, 64, 64], [1, 50, 3, 5]]


def test_it_lies_nearest_to_the_centre_on_the_map_that_fits():
    # 4 strides: sides from 45.3 to 90.5 fit the stride 16, smaller ones 8
    sample = DetDataSample(metainfo={'scale_factor': (2.0, 2.0)})
    boxes = np.array([[10.0, 4, 20, 20], [10, 4, 24, 24], [30, 20, 2, 4]])
    places = tokens_of(
        [Truth(np.arange(3), boxes, np.zeros(3))], [sample], torch.zeros(1, 3, 64, 96), [(8, 12), (4, 6)]
    )
    assert places.levels.tolist() == [1, 2, 1]
    # centres in the resized image: (40, 28), (44, 32), (62, 44)
    assert places.numbers.tolist() == [3 * 12 + 5, 96 + 2 * 6 + 2, 5 * 12 + 7]


@pytest.mark.parametrize('name', FAMILIES)
def test_rows_are_those_of_the_objects_tokens(name):
    torch.manual_seed(0)
    experts = [{'modules': '**.layers.*.ffn', 'type': 'MoEFFN', 'num_experts': 4, 'top_k': 2}]
    model = spread_weights(initialise(build(with_experts(family(name).model, experts)))).eval()
    assert LAYER in token_layers(model)
    assert {info.unit for info in layer_infos(model)} == {'token', 'query'}
    data = batch([(64, 64)] * 2)
    truths = [Truth(np.arange(4) + 4 * image, np.array(BOXES), np.zeros(4, dtype=int)) for image in range(2)]
    findings = Probe(model)([5, 6], data, truths)
    records = records_of(model, [5, 6], predictions_of, model, data)
    (record,) = [record for record in records if record.layer == LAYER]
    layer = findings.layers[LAYER]
    strides = FAMILIES[name]
    assert len(layer.truth_rows) == 8 and len(layer.weights) <= 8
    for number, row in enumerate(layer.truth_rows):
        x, y, width, height = BOXES[number % 4]
        fits = min(range(len(strides)), key=lambda i: abs(math.log2(4 * strides[i] / math.sqrt(width * height))))
        sides = [64 // stride for stride in strides]
        cell = [int((low + extent / 2) / strides[fits]) for low, extent in ((y, height), (x, width))]
        cell = [min(value, sides[fits] - 1) for value in cell]
        token = sum(side**2 for side in sides[:fits]) + cell[0] * sides[fits] + cell[1]
        at = (record.image_ids == 5 + number // 4) & (record.patches == token)
        np.testing.assert_allclose(layer.weights[row], record.weights[at][0].numpy(), rtol=1e-5, atol=1e-6)
        assert (layer.image_ids[row], layer.levels[row], layer.patches[row]) == (5 + number // 4, fits + 1, token)
    names = [level['name'] for level in pyramid_levels(model, findings)]
    assert names[0] == 'all queries' and names[-1] == f'map {layer.levels.max()}'
