"""The word that a layer gets: from its routing, over layers, with random gates and the swap test."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_det.analysis import RelativeSize, adjust_for_layers, holm, measure_specialization
from moe_det.analysis.swap_results import costs, sizes_that_lose
from moe_det.analysis.verdicts import Evidence, TooLittle, decide

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
    assert RESULT.verdict == 'size-sorted' and RESULT.sorts is True
    for change in (
        {'p_value': 0.011},
        {'adjusted_p_value': 0.011},
        {'cramers_v_given_level': 0.099},
        {'null_99': RESULT.mi_given_level_bits},
    ):
        result = dataclasses.replace(RESULT, mi_p_value=None, **change)
        assert result.sorts is False
        assert result.verdict == result.without_sorting == 'not specialised'
        by_level = dataclasses.replace(result, level_p_value=0.01, level_cramers_v=0.1)
        assert by_level.verdict == by_level.without_sorting == 'level-specialised'
        assert dataclasses.replace(by_level, level_p_value=0.011).verdict == 'not specialised'
        assert dataclasses.replace(by_level, level_cramers_v=0.099).verdict == 'not specialised'
        by_image = dataclasses.replace(by_level, mi_p_value=0.01, mi_cramers_v=0.1)
        assert by_image.verdict == 'scale-specialised'
        assert dataclasses.replace(by_image, mi_p_value=0.011).verdict == 'level-specialised'
        assert dataclasses.replace(by_image, mi_cramers_v=0.099).verdict == 'level-specialised'
    undetermined = dataclasses.replace(RESULT, p_value=None, level_p_value=0.001, level_cramers_v=1.0)
    assert undetermined.verdict == 'undetermined' and undetermined.sorts is None
    assert dataclasses.replace(RESULT, p_value=0.01, adjusted_p_value=0.01).verdict == 'size-sorted'


def test_size_within_the_level_carries_the_verdict_where_it_was_measured():
    size = RelativeSize(0.1, None, 0.001, '', 0.01, 0.2, 1.5, np.ones((4, 3)), np.ones((4, 3, 2)), np.ones((2, 2)), {})
    not_sorted = dataclasses.replace(RESULT, p_value=0.5, relative_size=size)
    assert not_sorted.sorts is True and not_sorted.verdict == 'size-sorted'
    none = dataclasses.replace(size, p_value=None, reason='too few')
    result = dataclasses.replace(RESULT, relative_size=none)
    assert (result.sorts, result.verdict, result.undetermined_reason) == (None, 'undetermined', 'too few')
    assert dataclasses.replace(RESULT, relative_size=dataclasses.replace(size, cramers_v=0.05)).sorts is False


# -- with the detector ------------------------------------------------------------------------------------------------

SORTS = dataclasses.replace(RESULT, mi_p_value=None)
NOTHING = dataclasses.replace(SORTS, p_value=0.4)
BY_LEVEL = dataclasses.replace(NOTHING, level_p_value=0.001, level_cramers_v=0.5)
BY_SCALE = dataclasses.replace(NOTHING, mi_p_value=0.001, mi_cramers_v=0.5)
UNKNOWN = dataclasses.replace(RESULT, p_value=None, reason='9 objects')


@pytest.mark.parametrize(
    ('detection', 'training', 'random', 'swap', 'word'),
    [
        (SORTS, SORTS, True, True, 'size-specialised'),
        (SORTS, SORTS, True, False, 'size-sorted'),
        (SORTS, SORTS, True, None, 'size-sorted'),
        (SORTS, SORTS, False, False, 'size-sorted'),
        (SORTS, SORTS, False, True, 'specialised, not by size'),
        (SORTS, SORTS, None, True, 'specialised, not by size'),
        (SORTS, NOTHING, True, True, 'specialised, not by size'),  # all objects together do not show it
        (SORTS, NOTHING, True, False, 'not specialised'),
        (NOTHING, SORTS, True, False, 'not specialised'),
        (NOTHING, NOTHING, False, True, 'specialised, not by size'),
        (BY_LEVEL, NOTHING, False, True, 'specialised, not by size'),
        (BY_LEVEL, NOTHING, False, False, 'level-specialised'),
        (BY_SCALE, BY_SCALE, False, None, 'scale-specialised'),
        (NOTHING, NOTHING, True, None, 'not specialised'),
        (UNKNOWN, SORTS, True, True, 'undetermined'),
        (UNKNOWN, NOTHING, False, False, 'undetermined'),
        (SORTS, UNKNOWN, True, True, 'undetermined'),
        (SORTS, 'no assigner', True, True, 'undetermined'),
        (NOTHING, 'no assigner', None, False, 'not specialised'),
        (TooLittle('9 of one size'), NOTHING, False, False, 'undetermined'),
    ],
)
def test_every_case_has_its_word(detection, training, random, swap, word):
    found, reason = decide(Evidence(detection, training, True, random, swap))
    assert found == word
    assert bool(reason) == (word == 'undetermined')


def test_the_reason_names_the_unit():
    both = decide(Evidence(UNKNOWN, UNKNOWN, True, None, None))
    assert both == ('undetermined', 'detection unit: 9 objects; training unit: 9 objects')
    assert decide(Evidence(SORTS, 'no assigner', True, None, None))[1] == 'training unit: no assigner'


@pytest.mark.parametrize('unit', [SORTS, NOTHING, BY_LEVEL])
def test_a_swap_that_cannot_tell_leaves_the_verdict_open(unit):
    evidence = Evidence(unit, unit, True, True, None, 'AP_L: no object')
    assert decide(evidence) == ('undetermined', 'the swap test cannot tell: AP_L: no object')
    assert decide(dataclasses.replace(evidence, swap_reason=''))[0] != 'undetermined'  # not run
    # it does not matter where sorting is unknown already
    assert 'swap' not in decide(dataclasses.replace(evidence, training=UNKNOWN))[1]
    assert decide(Evidence('two stages', BY_SCALE, False, None, None, 'AP_L: no object'))[0] == 'scale-specialised'


def test_objects_without_levels():
    word, reason = decide(Evidence('two stages', SORTS, False, None, True))
    assert word == 'undetermined' and 'no level of a pyramid' in reason
    assert decide(Evidence('two stages', BY_SCALE, False, None, False)) == ('scale-specialised', '')


def test_what_a_swap_costs():
    def measures(**losses):
        return {name: {'difference': d, 'interval': [d, d], 'p_value': p} for name, (d, p) in losses.items()}

    nothing = {'AP': (-0.01, 0.2), 'AP_S': (-0.01, 0.1), 'AP_M': (0.01, 0.9), 'AP_L': (-0.02, 0.011)}
    assert costs(measures(**nothing)) is False
    assert sizes_that_lose(measures(**{**nothing, 'AP_L': (-0.02, 0.0024)})) == ['AP_L']  # times four
    assert not costs(measures(**{**nothing, 'AP_L': (-0.02, 0.0026)}))
    assert not costs(measures(**{**nothing, 'AP_L': (-0.0009, 0.0001)}))  # too little to matter
    assert costs({**measures(**nothing), 'AP_S': None}) is None  # small objects may lose
    assert costs(dict.fromkeys(nothing)) is None
    assert costs({**measures(AP=(-0.02, 0.009)), 'AP_S': None, 'AP_M': None, 'AP_L': None})
    third = {'difference': -0.2, 'p_value': 0.0}  # thirds are shown, but do not decide
    assert not costs({**measures(**nothing), 'AP_lower': third})


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
    assert results['a'].verdict == 'size-sorted'
    three = adjust_for_layers({'a': RESULT, 'b': RESULT, 'c': RESULT})
    assert three['a'].adjusted_p_value == pytest.approx(0.015)
    assert three['a'].sorts is False
    assert '0.015 over all layers' in str(three['a'])
    size = RelativeSize(0.1, None, 0.004, '', 0.01, 0.2, 1.5, np.ones((4, 3)), np.ones((4, 3, 2)), np.ones((2, 2)), {})
    with_areas = dataclasses.replace(RESULT, relative_size=size)
    adjusted = adjust_for_layers({'a': with_areas, 'b': RESULT, 'c': with_areas})
    assert adjusted['a'].relative_size.adjusted_p_value == pytest.approx(0.008)  # of two layers that have it
    assert adjusted['b'].relative_size is None
    fourth = dataclasses.replace(RESULT, p_value=None)
    assert adjust_for_layers({'a': RESULT, 'b': RESULT, 'd': fourth})['a'].verdict == 'size-sorted'
