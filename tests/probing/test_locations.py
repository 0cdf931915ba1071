"""Layers of factorised experts, which decide at every location, under the probe and in the statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import batch, build, config, initialise, shrink, spread_weights, with_experts
from torch import nn

from moe_det.analysis.units import unit_without_levels
from moe_det.layers.mu_moe import EVERY_POSITION
from moe_det.probing.conditions import conditions_of
from moe_det.probing.findings import LayerFindings
from moe_det.probing.layer_description import layer_infos
from moe_det.probing.places import Truth
from moe_det.probing.probe import Probe
from moe_det.routing.router import find_routers

NAMES = [f'neck.lateral_convs.{i}.conv' for i in range(3)]


def multilinear_detector() -> nn.Module:
    torch.manual_seed(0)
    cfg = config("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'")
    cfg.model.backbone.depth = 18
    model = shrink(cfg).model
    model.bbox_head.stacked_convs = 1
    experts = dict(modules='neck.lateral_convs.*', type='MuConv2d', num_experts=3, rank=4)
    return spread_weights(initialise(build(with_experts(model, experts)))).eval()


def truth(numbers: list[int], boxes: list[list[float]]) -> Truth:
    return Truth(np.array(numbers), np.array(boxes, dtype=float), np.zeros(len(numbers), dtype=int))


def test_an_object_has_the_coefficients_at_its_centre():
    model = multilinear_detector()
    infos = layer_infos(model)
    assert [(info.name, info.unit, info.grid) for info in infos] == [(n, 'patch', EVERY_POSITION) for n in NAMES]
    conditions = [c for c in conditions_of(model) if 'forced' in c.name and NAMES[0] in c.name]
    # centres (20, 36) and (44, 12) of the first image, (60, 60) of the second, x before y, in images of 64 pixels
    truths = [truth([0, 1], [[16, 32, 8, 8], [40, 8, 8, 8]]), truth([2], [[56, 56, 8, 8]])]
    found = Probe(model, conditions, {info.name: info.grid for info in infos})([0, 1], batch(), truths)
    for name, stride in zip(NAMES, (8, 16, 32), strict=True):
        layer, side = found.layers[name], 64 // stride
        assert layer.weights.shape == (2 * side**2, 3)
        for number, (image, x, y) in enumerate([(0, 20, 36), (0, 44, 12), (1, 60, 60)]):
            row = layer.truth_rows[number]
            assert (layer.image_ids[row], layer.patches[row]) == (image, y // stride * side + x // stride)
        np.testing.assert_allclose(layer.weights.sum(1), 1, atol=1e-5)
    assert len(conditions) == 3 and len(find_routers(model)) == 3
    natural = found.detections[:, :7]
    for changed in found.conditions.values():
        assert changed[:, :7].shape != natural.shape or not np.allclose(changed[:, :7], natural, atol=1e-3)


@pytest.mark.parametrize('lost', [0, 1])
def test_objects_in_rows_that_no_expert_chose_are_no_entries(lost):
    weights = np.array([[0.2, 0.1], [0.3, 0.0]])
    weights[lost] = 0
    none = np.full(0, -1)
    rows = np.array([0, 1, 0])
    layer = LayerFindings(*np.zeros((3, 2), dtype=int), weights, weights, weights, none, none, rows)
    unit = unit_without_levels(layer, np.array([0, 1, 2]))
    kept = np.flatnonzero(rows != lost)
    assert unit.objects.tolist() == kept.tolist() and unit.sizes.tolist() == kept.tolist()
    np.testing.assert_allclose(unit.experts.sum(1), 1)
