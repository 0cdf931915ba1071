"""Units of analysis from a handful of routing rows written down by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr

from moe_det.analysis import units
from moe_det.analysis.assembly import make_units
from moe_det.analysis.slots import expert_name, masses_of, top_experts, within_slots
from moe_det.errors import DataError


def layer(**changes):
    """Two images, two levels; expert weights of K = 2 of 3."""
    values = dict(
        image_ids=np.array([5, 9, 5, 9]),
        levels=np.array([0, 0, 1, 1]),
        patches=np.zeros(4, dtype=int),
        weights=np.array([[0.7, 0.3, 0], [0, 0.4, 0.6], [0.2, 0, 0.8], [0.5, 0.5, 0]]),
        probs=np.full((4, 3), 1 / 3),
        detection_rows=np.array([0, 2, 1, 3, 3]),
        positive_rows=np.array([0, 0, 0, 2, 1, 3]),
        truth_rows=np.full(4, -1),
    )
    return SimpleNamespace(**{**values, **changes})


SIZES = np.array([0, 2, 1, 0])
LEVELS = np.array([0, 1, 0, 1, 1])  # of the detections
POSITIVES = np.array([[0, 0], [0, 0], [1, 0], [0, 1], [2, 0], [2, 1]])


def test_detection_unit_takes_the_row_of_the_winning_detection():
    unit = units.detection_unit(layer(), np.array([0, -1, 4, 1]), LEVELS, SIZES)
    assert unit.objects.tolist() == [0, 2, 3]
    assert unit.image_ids.tolist() == [5, 9, 5]
    assert unit.levels.tolist() == [0, 1, 1]
    assert unit.sizes.tolist() == [0, 1, 0]
    assert top_experts(unit.experts).ravel().tolist() == [0, 0, 2]  # a tie goes to the lowest
    assert unit.shares.tolist() == [1, 1, 1]


def test_training_unit_shares_an_object_among_the_levels_of_its_anchors():
    unit = units.training_unit(layer(), POSITIVES, SIZES)
    found = {(o, level): (share, w.tolist()) for o, level, share, w in zip(
        unit.objects, unit.levels, unit.shares, unit.experts, strict=True)}  # fmt: skip
    assert found == {
        (0, 0): (pytest.approx(2 / 3), pytest.approx([0.7, 0.3, 0])),
        (0, 1): (pytest.approx(1 / 3), pytest.approx([0.2, 0, 0.8])),
        (1, 0): (1, pytest.approx([0.7, 0.3, 0])),
        (2, 0): (0.5, pytest.approx([0, 0.4, 0.6])),
        (2, 1): (0.5, pytest.approx([0.5, 0.5, 0])),
    }
    assert unit.sizes[unit.objects == 0].tolist() == [0, 0]


def test_layers_that_decide_once_per_image_use_the_objects_centre():
    one = layer(
        image_ids=np.array([5, 9]), levels=np.zeros(2, int), patches=np.zeros(2, int),
        weights=np.array([[0.0, 0.6, 0.0], [0.9, 0.0, 0.0]]), truth_rows=np.array([0, 1, 0, 0]),
        detection_rows=np.full(5, -1), positive_rows=np.full(6, -1),
    )  # fmt: skip
    unit = units.detection_unit(one, np.array([3, 0, -1, 2]), LEVELS, SIZES)
    assert unit.objects.tolist() == [0, 1, 3] and top_experts(unit.experts).ravel().tolist() == [1, 0, 1]
    assert unit.levels.tolist() == [1, 0, 0]  # of the detections, though the decision is the same at all levels
    assert unit.experts[0].tolist() == [0, 1, 0]  # a single choice weighs 1, whatever the gate's probability
    unit = units.training_unit(one, POSITIVES, SIZES)
    columns = unit.objects, unit.levels, unit.shares, top_experts(unit.experts).ravel()
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == [
        (0, 0, pytest.approx(2 / 3), 1),
        (0, 1, pytest.approx(1 / 3), 1),
        (1, 0, 1, 0),
        (2, 0, 0.5, 1),
        (2, 1, 0.5, 1),
    ]
    unit = units.unit_without_levels(one, SIZES)
    assert unit.objects.tolist() == [0, 1, 2, 3] and unit.levels.tolist() == [0] * 4


def test_a_detection_without_a_level_is_left_out():
    unit = units.detection_unit(layer(), np.array([0, -1, 4, 1]), np.array([0, 1, 0, 1, -1]), SIZES)
    assert unit.objects.tolist() == [0, 3]


def test_image_unit_is_spearmans_correlation_of_weight_and_log_area():
    rng = np.random.default_rng(0)
    images = np.arange(30)
    weight = rng.random((60, 2))
    weight /= weight.sum(1, keepdims=True)
    one = layer(image_ids=np.tile(images, 2), levels=np.repeat([0, 1], 30), weights=weight)
    owners = rng.integers(0, 30, 200)
    areas = rng.lognormal(7, 1, 200)
    found = {(row['level'], row['expert']): row for row in units.image_unit(one, owners, areas)}
    present = np.unique(owners)
    mean = [np.log(areas[owners == i]).mean() for i in present]
    for level in (0, 1):
        for expert in (0, 1):
            rho, p_value = spearmanr(weight[level * 30 + present, expert], mean)
            row = found[level, expert]
            assert (row['rho'], row['p_value']) == (pytest.approx(rho), pytest.approx(p_value))
            assert row['n'] == len(present)
    constant = layer(image_ids=images, levels=np.zeros(30, int), weights=np.tile([1.0, 0.0], (30, 1)))
    assert units.image_unit(constant, owners, areas)[0]['rho'] is None


def simple_unit(images, experts, sizes, shares=None):
    n = len(images)
    return units.Unit(
        objects=np.arange(n), rows=np.arange(n), image_ids=np.array(images), levels=np.zeros(n, int),
        patches=np.zeros(n, int), experts=np.eye(2)[experts], sizes=np.array(sizes),
        shares=np.ones(n) if shares is None else np.array(shares),
    )  # fmt: skip


def test_lift_by_hand():
    # expert 0: 3 small, 1 medium; expert 1: 1 small, 3 medium; base rates 1/2
    unit = simple_unit([1] * 8, [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 1, 1, 1])
    observed, low, high = units.lift(unit, 3, 100, 0)
    np.testing.assert_allclose(observed, [[1.5, 0.5, np.nan], [0.5, 1.5, np.nan]])
    assert low is None and high is None  # one image cannot be resampled


def test_lift_counts_shares():
    unit = simple_unit([1, 2, 3], [0, 0, 1], [0, 1, 1], [1, 0.5, 0.5])
    np.testing.assert_allclose(units.lift(unit, 2, 0, 0)[0], [[2 / 1.5, 0.5 * 2 / 1.5], [0, 0.5 * 2 / 0.5]])


def test_shards_have_one_choice_each():
    weights = np.array([[0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0], [0.5, 0.5, 0, 0, 0, 1.0]])
    chosen = top_experts(weights, 2)
    assert chosen.tolist() == [[1, 5], [0, 4], [0, 5]]
    assert masses_of(chosen, 6)[0].tolist() == [0, 0.5, 0, 0, 0, 0.5]
    assert top_experts(weights).ravel().tolist() == [1, 0, 5]
    assert within_slots(np.array([1.0, 2, 3, 10, 10, 40]), 2).tolist() == [-1, 0, 1, -10, -10, 20]
    names = [expert_name(5, 6), expert_name(5, 6, 2), expert_name(0, 6, 2), expert_name(4, 6, 3)]
    assert names == ['expert 5', 'shard 1, copy 2', 'shard 0, copy 0', 'shard 2, copy 0']


def test_lift_of_a_shard_is_that_of_its_own_choices():
    rng = np.random.default_rng(0)
    first, second, sizes = rng.integers(2, size=40), rng.integers(2, size=40), rng.integers(3, size=40)
    images, shares = rng.integers(8, size=40), rng.uniform(0.2, 1, 40)
    alone = [simple_unit(images, choice, sizes, shares) for choice in (first, second)]
    both = dataclasses.replace(alone[0], experts=np.hstack([unit.experts for unit in alone]) / 2)
    expected = [units.lift(unit, 3, 200, 1) for unit in alone]
    for found, parts in zip(units.lift(both, 3, 200, 1, 2), zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(found, np.vstack(parts))


def test_interval_of_the_lift_covers_the_truth():
    """Images as the sampling unit: planted P(expert 0 | small) = 0.8, P(expert 0 | medium) = 0.4, equally many."""
    rng = np.random.default_rng(0)
    truth = 0.8 / 0.6
    covered = 0
    for trial in range(100):
        images = np.repeat(np.arange(80), 4)
        sizes = rng.integers(0, 2, len(images))
        experts = (rng.random(len(images)) > np.where(sizes == 0, 0.8, 0.4)).astype(int)
        _, low, high = units.lift(simple_unit(images, experts, sizes), 2, 300, trial)
        covered += low[0, 0] <= truth <= high[0, 0]
    assert 88 <= covered <= 100


def test_findings_about_other_objects_are_refused():
    findings = SimpleNamespace(truths=np.arange(3), layers={'head': None})
    truth = SimpleNamespace(objects=SimpleNamespace(areas=np.ones(2), sizes=np.zeros(2, int)))
    analysed = SimpleNamespace(findings=findings, ground_truth=truth)
    with pytest.raises(DataError, match='3 objects, not the 2 of the annotations'):
        make_units(SimpleNamespace(name='head'), analysed)
