"""From findings to the numbers of a layer: what too little data, missing levels and missing tests leave open."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_files import coco_content

from moe_det.analysis.assembly import conclude, layer_results
from moe_det.analysis.ground_truth import GroundTruth
from moe_det.analysis.inputs import Analysed, LayerInfo, Settings
from moe_det.analysis.swap_results import Donors
from moe_det.analysis.units import NO_ROW
from moe_det.probing.findings import Findings, LayerFindings

IMAGES, LEVELS, EXPERTS = 60, 3, 2
SETTINGS = Settings(permutations=199, bootstrap=0, swaps=0, random_gates=40)
NOT_RUN = Donors(0, 0, 0)


@pytest.fixture
def world(tmp_path):
    """Objects on three levels, and one gate per image and level whose expert is told by the sizes inside the level."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(IMAGES), rng.integers(1, 7, IMAGES))
    level = rng.integers(LEVELS, size=len(image))
    relative = rng.normal(size=(IMAGES, LEVELS))[image, level] + 0.5 * rng.normal(size=len(image))
    side = 20 * 2.5**level * np.exp(0.15 * relative)
    names = [f'image {i}' for i in range(IMAGES)]
    objects = [(names[i], 1, [0, 0, s, s]) for i, s in zip(image.tolist(), side.tolist(), strict=True)]
    path = tmp_path / 'annotations.json'
    path.write_text(json.dumps(coco_content(objects, names, {1: 'thing'}, (640, 480))))
    truth = GroundTruth(path, names)
    sums = np.zeros((IMAGES, LEVELS))
    np.add.at(sums, (image, level), relative)
    return truth, image, level, (sums > 0).astype(int), rng


def analysed(world, experts=None, matched=None, without_levels=False, by_image=False, other_shard=None):
    """What a detector would have given: each object is found, on its level, unless ``matched`` says otherwise.

    With ``other_shard``, (images, levels) copies, a row runs these of a second shard as well.
    """
    truth, image, level, sorting, rng = world
    experts = sorting if experts is None else experts
    objects = len(image)
    rows = np.full(objects, NO_ROW) if by_image or without_levels else level * IMAGES + image
    table = experts[:, :1] if by_image or without_levels else experts
    level_of_row, image_of_row = np.divmod(np.arange(table.size), IMAGES)
    weights, slots = np.eye(EXPERTS)[table.T.ravel()], 1
    if other_shard is not None:
        weights, slots = np.hstack([np.eye(EXPERTS)[other_shard.T.ravel()], weights]), 2
    layer = LayerFindings(
        image_ids=image_of_row,
        levels=level_of_row,
        patches=np.zeros(len(image_of_row), int),
        weights=weights,
        probs=np.full(weights.shape, 1 / weights.shape[1]),
        features=rng.normal(size=(len(image_of_row), 5)).astype(np.float32),
        detection_rows=rows,
        positive_rows=rows,
        truth_rows=image if by_image or without_levels else np.full(objects, NO_ROW),
    )
    detections = np.zeros((objects, 8))
    detections[:, 0], detections[:, 7] = image, -1 if without_levels else level
    findings = Findings(
        image_ids=np.arange(IMAGES),
        detections=detections,
        truths=np.arange(objects),
        positives=np.stack([np.arange(objects), level], 1),
        layers={'head': layer},
        conditions={},
        losses={},
    )
    matches = np.arange(objects)
    if matched is not None:
        matches[matched:] = -1
    reason = 'the detector has no one-stage head' if without_levels else None
    given = Analysed(
        findings, matches, truth, {}, None, {}, NOT_RUN, {'detection': reason, 'training': reason}, None, SETTINGS
    )
    info = LayerInfo('head', 'level', None, EXPERTS * slots, slots, 'all', (), slots)
    found = layer_results(info, given)
    conclude([found])
    json.dumps(found.numbers, allow_nan=False)
    return found.numbers


def test_a_gate_that_sorts_inside_the_levels(world):
    numbers = analysed(world)
    assert numbers['units']['detection']['sorts'] is numbers['units']['training']['sorts'] is True
    assert numbers['relative_size']['p_value'] == numbers['relative_size']['p_value_holm'] == 1 / 200
    assert numbers['relative_size']['mi_bits'] > 0.1 > numbers['mi_given_level_bits']  # what COCO's bins do not show
    assert numbers['relative_size']['ceiling_bits'] == pytest.approx(np.log2(3), abs=0.02)
    assert numbers['random_gates']['quantile'] == 1  # its features are noise
    assert numbers['verdict'] == 'size-sorted' and numbers['swap'] is None
    assert 'not run' in numbers['sentence']
    assert numbers['levels'] == [0, 1, 2]
    assert np.sum(numbers['expert_by_size_by_level']) == numbers['n_objects'] == len(world[1])


def test_every_shard_counts_alike(world):
    """The sorting shard comes second, where the largest weight of a row, a tie, would never find it."""
    alone = analysed(world)
    constant = analysed(world, other_shard=np.zeros((IMAGES, LEVELS), int))
    for name in ('detection', 'training'):
        unit, single = constant['units'][name], alone['units'][name]
        table = np.array(unit['expert_by_size'])
        assert table[1].tolist() == [0, 0, 0] and table[0] == pytest.approx(np.sum(single['expert_by_size'], 0) / 2)
        np.testing.assert_allclose(table[2:], np.array(single['expert_by_size']) / 2)
        relative, own = unit['relative_size'], single['relative_size']
        # the other shard tells nothing; the bias is a mean over other random permutations
        assert relative['mi_bits'] == pytest.approx(own['mi_bits'] / 2, abs=0.01) and own['mi_bits'] > 0.2
        assert relative['p_value'] == own['p_value'] == 1 / 200
    assert constant['random_gates']['bits'] == pytest.approx(alone['random_gates']['bits'] / 2)
    assert max(constant['random_gates']['values']) < max(alone['random_gates']['values'])
    np.testing.assert_allclose(constant['lift'][2:], alone['lift'])
    assert constant['lift'][0] == pytest.approx([1, 1, 1]) and constant['lift'][1] == [None] * 3
    both = analysed(world, other_shard=world[3])
    assert both['relative_size']['mi_bits'] == pytest.approx(alone['relative_size']['mi_bits'], abs=0.01)
    assert both['verdict'] == alone['verdict'] == 'size-sorted'
    usage = constant['utilisation']
    assert usage['importance_share'][:2] == [0.5, 0] and sum(usage['importance_share']) == pytest.approx(1)
    assert usage['load_ratio'][:2] == [2, 0] and usage['living'] == 3


def test_one_decision_per_image_is_given_the_level_too(world):
    truth, image, level, _, rng = world
    # images with objects on high levels get expert 1: a gate that reads the scale of the image
    mean = np.bincount(image, level) / np.bincount(image)
    by_scale = np.repeat((mean > np.median(mean)).astype(int)[:, None], LEVELS, 1)
    numbers = analysed(world, by_scale, by_image=True)
    assert numbers['mi_bits'] > 0.1 and numbers['mi_p_value'] == 1 / 200
    assert numbers['relative_size']['p_value'] > 0.01
    assert numbers['verdict'] == 'scale-specialised'
    assert np.array(numbers['expert_by_size_by_level']).shape == (LEVELS, EXPERTS, 3)


def test_nine_matched_objects_leave_it_open(world):
    numbers = analysed(world, matched=9)
    assert numbers['units']['training']['sorts'] is True
    assert numbers['n_objects'] == 9 and numbers['p_value'] is None
    assert numbers['verdict'] == 'undetermined'
    assert numbers['undetermined_reason'].startswith('detection unit: 9 objects; at least 30')
    assert '9 objects' in numbers['sentence']
    nothing = analysed(world, experts=0 * world[3], matched=9)  # also where all objects together show nothing
    assert nothing['units']['training']['sorts'] is False and nothing['verdict'] == 'undetermined'


def test_objects_without_a_level(world):
    numbers = analysed(world, np.random.default_rng(1).integers(2, size=(IMAGES, LEVELS)), without_levels=True)
    assert numbers['verdict'] == 'undetermined' and 'no level of a pyramid' in numbers['sentence']
    assert numbers['relative_size'] is None and numbers['random_gates'] is None
    assert 'no level of a pyramid' in numbers['random_gates_reason']
    assert numbers['units']['detection'] == {'unavailable': 'the detector has no one-stage head'}
    assert numbers['main_unit'] == 'training' and numbers['levels'] == []
