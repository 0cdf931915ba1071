"""Random gates: their use matches, and a gate that is random itself is one of them."""

from __future__ import annotations

import numpy as np
import pytest

from moe_det.analysis.information import conditional_mutual_information
from moe_det.analysis.random_gates import RandomGates, matching_bias, random_gates


@pytest.mark.parametrize('experts', [2, 3, 8])
def test_a_bias_gives_each_expert_its_rows(experts):
    rng = np.random.default_rng(experts)
    logits = rng.normal(size=(400, experts)) * rng.uniform(0.1, 10)
    wanted = rng.multinomial(400, rng.dirichlet(np.ones(experts)))
    wanted[0] += wanted[-1]
    wanted[-1] = 0  # never chosen
    got = np.bincount((logits + matching_bias(logits, wanted)).argmax(1), minlength=experts)
    assert got[-1] == 0
    assert np.abs(got - wanted).sum() / 2 <= 2


def test_the_bias_is_that_of_the_best_assignment():
    # the rows that an expert gets are those of the assignment with the largest sum of logits
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(0)
    logits, wanted = rng.normal(size=(30, 3)), np.array([15, 10, 5])
    columns = np.repeat(np.arange(3), wanted)
    _, best = linear_sum_assignment(-logits[:, columns])
    found = (logits + matching_bias(logits, wanted)).argmax(1)
    if (np.bincount(found) == wanted).all():
        assert found.tolist() == columns[best].tolist()
    assert logits[np.arange(30), found].sum() == pytest.approx(logits[np.arange(30), columns[best]].sum(), abs=0.5)


def world(seed: int, images: int = 150):
    """Features that tell the scale of an image at each of two levels, and objects whose size follows it."""
    rng = np.random.default_rng(seed)
    scale = rng.normal(size=images)
    level = np.repeat([0, 1], images)
    features = np.stack([np.tile(scale, 2), *rng.normal(size=(7, 2 * images))], 1) + 5
    rows = np.repeat(np.arange(2 * images), 3)
    sizes = np.digitize(np.tile(scale, 2)[rows] + rng.normal(size=len(rows)), [-0.5, 0.5])
    return rng, features, level, rows, sizes


def measured(features, top, level, rows, sizes, **options) -> RandomGates:
    given = {'entry_levels': level[rows], 'weights': np.ones(len(rows)), 'num_experts': 4, 'count': 60, **options}
    return random_gates(features, top, level, rows=rows, sizes=sizes, **given)


def test_a_random_gate_is_one_of_them():
    places = []
    for seed in range(20):
        rng, features, level, rows, sizes = world(seed)
        top = ((features - features.mean(0)) @ rng.normal(size=(8, 4))).argmax(1)
        found = measured(features, top, level, rows, sizes, seed=seed)
        assert found.values.tolist() == sorted(found.values) and len(found.values) == 60
        places.append(found.quantile)
    assert 0.25 < np.mean(places) < 0.75 and np.ptp(places) > 0.5
    assert sum(place > 0.95 for place in places) <= 4


def test_a_gate_that_reads_the_size_is_beyond_them():
    _, features, level, rows, sizes = world(1)
    top = np.digitize(features[:, 0] - 5, [-0.7, 0, 0.7])
    found = measured(features, top, level, rows, sizes)
    assert found.quantile == 1 and found.beyond
    table = np.zeros((2, 4, 3))
    np.add.at(table, (level[rows], top[rows], sizes), 1)
    assert found.bits == pytest.approx(conditional_mutual_information(table))
    assert np.median(found.values) > 0.01  # features tell scale, so random gates sort as well


def test_shards_are_matched_and_measured_each_by_itself():
    _, features, level, rows, sizes = world(1)
    sorting = (features[:, 0] > 5).astype(int)
    alone = measured(features, sorting, level, rows, sizes, num_experts=2)
    one = measured(features, np.stack([0 * sorting, 2 + sorting], 1), level, rows, sizes)
    assert one.bits == pytest.approx(alone.bits / 2) and one.beyond
    both = measured(features, np.stack([sorting, 2 + sorting], 1), level, rows, sizes)
    assert both.bits == pytest.approx(alone.bits)
    # the random gates of a shard that uses one copy use one copy as well, so half of the bits are left
    assert np.mean(one.values) == pytest.approx(np.mean(alone.values) / 2, rel=0.35)
    assert np.mean(both.values) == pytest.approx(np.mean(alone.values), rel=0.35)
    none = measured(features, np.stack([0 * sorting, 2 + 0 * sorting], 1), level, rows, sizes)
    assert none.bits == pytest.approx(0, abs=1e-12) and none.values == pytest.approx(0, abs=1e-12)


def test_one_decision_for_all_levels():
    rng = np.random.default_rng(0)
    features, rows = rng.normal(size=(100, 5)), np.repeat(np.arange(100), 4)
    levels, sizes = np.tile([0, 1, 0, 1], 100), rng.integers(3, size=400)
    once, of_levels = np.zeros(100, int), dict(num_experts=3, entry_levels=levels)
    top = rng.integers(3, size=100)
    found = measured(features, top, once, rows, sizes, **of_levels, weights=np.full(400, 0.5), count=30)
    assert not found.beyond and len(found.values) == 30
    same = [measured(features, once, once, rows, sizes, **of_levels, count=5) for _ in range(2)]
    assert same[0].bits == pytest.approx(0, abs=1e-12)
    assert same[0].values.tolist() == same[1].values.tolist()
    assert same[0].values == pytest.approx(0, abs=1e-12)  # matched in use: a single expert
