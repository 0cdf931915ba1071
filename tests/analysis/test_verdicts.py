"""The word that a result gets: over layers, with forced experts, over seeds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_det.analysis import adjust_for_layers, agreement, align_experts, holm, measure_specialization, size_preference

PREFERENCE = np.array([[8, 1, 1], [1, 8, 1], [1, 1, 8], [4, 4, 4]])


def specialised(table: np.ndarray = PREFERENCE):
    """A size specialist on two levels with the same table: one object per image."""
    table = np.stack([table, table], 2)
    experts, sizes, levels = (np.repeat(axis, table.ravel()) for axis in np.indices(table.shape).reshape(3, -1))
    return measure_specialization(
        np.arange(len(experts)), levels, experts, sizes, num_experts=len(table), permutations=199, bootstrap=0
    )


RESULT = specialised()


def test_the_rules_one_by_one():
    assert RESULT.verdict == 'size-specialised'
    for change in (
        {'p_value': 0.011},
        {'adjusted_p_value': 0.011},
        {'cramers_v_given_level': 0.099},
        {'null_99': RESULT.mi_given_level_bits},
        {'counterfactual': False},
    ):
        result = dataclasses.replace(RESULT, **change)
        assert result.verdict == result.fallback_verdict == 'not specialised'
        by_level = dataclasses.replace(result, level_p_value=0.01, level_cramers_v=0.1)
        assert by_level.verdict == by_level.fallback_verdict == 'level-specialised'
        assert dataclasses.replace(by_level, level_p_value=0.011).verdict == 'not specialised'
        assert dataclasses.replace(by_level, level_cramers_v=0.099).verdict == 'not specialised'
    undetermined = dataclasses.replace(RESULT, p_value=None, level_p_value=0.001, level_cramers_v=1.0)
    assert undetermined.verdict == undetermined.fallback_verdict == 'undetermined'
    assert dataclasses.replace(RESULT, p_value=0.01, adjusted_p_value=0.01).verdict == 'size-specialised'


def test_forced_experts():
    assert RESULT.counterfactual is None
    assert RESULT.with_counterfactual(True).verdict == 'size-specialised'
    assert RESULT.with_counterfactual(False).verdict == 'not specialised'
    assert RESULT.verdict == 'size-specialised'  # unchanged


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, then never smaller than the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, None, 0.6]) == [1.0, None, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    with pytest.raises(ValueError, match='got 1.5'):
        holm([1.5])


def test_several_layers():
    assert RESULT.p_value == 1 / 200
    results = adjust_for_layers({'a': RESULT, 'b': RESULT})
    assert [result.adjusted_p_value for result in results.values()] == [0.01, 0.01]
    assert results['a'].verdict == 'size-specialised'
    three = adjust_for_layers({'a': RESULT, 'b': RESULT, 'c': RESULT})
    assert three['a'].adjusted_p_value == pytest.approx(0.015)
    assert three['a'].verdict == 'not specialised'
    assert '0.015 over all layers' in str(three['a'])
    fourth = dataclasses.replace(RESULT, p_value=None)
    assert adjust_for_layers({'a': RESULT, 'b': RESULT, 'd': fourth})['a'].verdict == 'size-specialised'


# -- seeds ------------------------------------------------------------------------------------------------------


def test_size_preference_by_hand():
    # 8 objects, margins 4, 4 and 4, 4: two are expected in each cell
    assert size_preference([[3, 1], [1, 3]]).tolist() == [[0.125, -0.125], [-0.125, 0.125]]
    # a pure level map prefers no size
    level_map = np.zeros((2, 2, 2))
    level_map[0, :, 0] = [5, 1]
    level_map[1, :, 1] = [1, 5]
    np.testing.assert_allclose(size_preference(level_map), 0, atol=1e-12)
    assert size_preference(level_map.sum(2))[0, 0] > 0.1
    with pytest.raises(ValueError, match='not all 0'):
        size_preference(np.zeros((2, 2)))


def test_shuffled_experts_are_found_again():
    rng = np.random.default_rng(0)
    reference = rng.integers(1, 40, (5, 3, 4))
    orders = [rng.permutation(5) for _ in range(3)]
    aligned = align_experts([reference, *(3 * reference[order] for order in orders)])
    assert aligned[0].tolist() == [0, 1, 2, 3, 4]
    for order, indices in zip(orders, aligned[1:], strict=True):
        np.testing.assert_array_equal(reference[order][indices], reference)
    other = align_experts([reference[orders[0]], reference], reference=1)
    np.testing.assert_array_equal(reference[orders[0]][other[0]], reference)
    assert other[1].tolist() == [0, 1, 2, 3, 4]


def test_tables_that_cannot_be_aligned():
    with pytest.raises(ValueError, match='same experts and sizes'):
        align_experts([np.ones((2, 3)), np.ones((3, 3))])
    with pytest.raises(ValueError, match='no tables'):
        align_experts([])


def test_three_seeds_establish():
    shuffled = [specialised(PREFERENCE[order]) for order in ([3, 1, 0, 2], [2, 3, 1, 0])]
    found = agreement([RESULT, *shuffled])
    assert found.verdict == 'established'
    np.testing.assert_allclose(found.similarity, 1)
    assert '3 not tested by forcing experts' in found.reason
    confirmed = [result.with_counterfactual(True) for result in (RESULT, *shuffled)]
    assert 'forcing' not in agreement(confirmed).reason
    np.testing.assert_array_equal(PREFERENCE[[2, 3, 1, 0]][found.alignment[2]], PREFERENCE)


def test_experts_are_matched_to_a_seed_that_is_specialised():
    flat = dataclasses.replace(RESULT, p_value=0.5, expert_by_size_by_level=np.ones((4, 3, 1)))
    shuffled = [specialised(PREFERENCE[order]) for order in ([3, 1, 0, 2], [2, 3, 1, 0])]
    found = agreement([flat, RESULT, *shuffled])
    assert found.verdict == 'established'
    assert found.similarity[0].tolist() == [0, 0, 0, 0]


def test_two_seeds_do_not():
    found = agreement([RESULT, RESULT, RESULT.with_counterfactual(False)])
    assert found.verdict == 'not established'
    assert found.reason.startswith('2 of 3 seeds are size-specialised; at least 3 are needed')
    assert found.verdicts == ('size-specialised', 'size-specialised', 'not specialised')


def test_a_minority_does_not():
    found = agreement([RESULT] * 3 + [RESULT.with_counterfactual(False)] * 3)
    assert found.verdict == 'not established'
    assert 'more than half' in found.reason


def test_seeds_that_prefer_different_sizes():
    small_or_not = specialised(np.array([[14, 2, 2], [2, 14, 14]]))
    large_or_not = specialised(np.array([[2, 2, 14], [14, 14, 2]]))
    assert small_or_not.verdict == large_or_not.verdict == 'size-specialised'
    found = agreement([small_or_not, small_or_not, large_or_not])
    assert found.verdict == 'not established'
    assert 'prefer different sizes' in found.reason
    assert agreement([small_or_not] * 3).verdict == 'established'


def test_no_seed_is_specialised():
    level_only = dataclasses.replace(RESULT, p_value=0.5)
    assert agreement([level_only] * 3).verdict == 'not established'
    with pytest.raises(ValueError, match='no results'):
        agreement([])
