"""Agreement of use and ability, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moe_det.analysis.counterfactual import advantage, agreement, spreads


def forced(*rows):
    return [dict(zip(('AP_S', 'AP_M', 'AP_L'), row, strict=True)) for row in rows]


def test_a_pure_level_map_prefers_nothing():
    tables = np.array([[[30, 5, 0], [0, 0, 0]], [[0, 0, 0], [2, 20, 9]]])  # levels, experts, sizes
    assert agreement(tables.transpose(1, 2, 0), forced((0.3, 0.1, 0.1), (0.1, 0.3, 0.3))) is None


def test_advantage_does_not_count_being_better_at_everything():
    np.testing.assert_allclose(advantage(forced((0.2, 0.3, 0.4), (0.4, 0.5, 0.6))), 0, atol=1e-12)
    found = advantage(forced((0.4, 0.2, 0.2), (0.2, 0.2, 0.2)))
    np.testing.assert_allclose(found, np.array([[2, -1, -1], [-2, 1, 1]]) / 30)


def test_agreement_has_the_sign_of_use_and_ability():
    tables = np.array([[8, 2, 5], [2, 8, 5]])[:, :, None]
    good, bad = forced((0.4, 0.2, 0.3), (0.2, 0.4, 0.3)), forced((0.2, 0.4, 0.3), (0.4, 0.2, 0.3))
    assert agreement(tables, good) == pytest.approx(1)
    assert agreement(tables, bad) == pytest.approx(-1)
    assert agreement(tables, good[:1]) is None
    assert agreement(tables, forced((None, 0.2, 0.3), (None, 0.4, 0.3))) == pytest.approx(1 / np.sqrt(2))


def test_a_copy_stands_beside_those_of_its_own_shard():
    first, second = forced((0.4, 0.2, 0.2), (0.2, 0.2, 0.2)), forced((0.1, 0.1, 0.1), (0.0, 0.0, 0.3))
    np.testing.assert_allclose(advantage(first + second, 2), np.vstack([advantage(first), advantage(second)]))
    table = np.array([[8, 2, 5], [2, 8, 5]])[:, :, None]
    both = np.concatenate([table, table]) / 2
    # whatever forcing costs in one shard, it says nothing of the other
    worse = [{name: value - 0.1 for name, value in row.items()} for row in forced((0.4, 0.2, 0.3), (0.2, 0.4, 0.3))]
    assert agreement(both, [*forced((0.4, 0.2, 0.3), (0.2, 0.4, 0.3)), *worse], 2) == pytest.approx(1)
    assert agreement(table, first, 2) is None  # one copy of each


def test_spreads():
    rows = forced((0.1, 0.5, None), (0.4, 0.3, None), (0.2, 0.4, None))
    assert spreads(rows) == dict(spread_AP_S=pytest.approx(0.3), spread_AP_M=pytest.approx(0.2), spread_AP_L=None)
