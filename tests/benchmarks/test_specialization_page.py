"""The page of benchmarks/specialization_on_shapes.py from made-up runs."""

from __future__ import annotations

import pytest
from common.intervals import welch
from scipy.stats import ttest_ind
from shapes.page import page
from small_files import table_cells

CLS, REG = 'bbox_head.cls', 'bbox_head.reg'


def layer_of(bits=0.02, *, sorts=False, place=0.5, loss=-0.001, costs=False, verdict='not specialised', **changes):
    """What the record keeps of a layer of one run."""
    swap = {'costs': costs, 'draws': 4}
    for measure in ('AP', 'AP_S', 'AP_M', 'AP_L'):
        swap[measure] = dict(difference=loss, interval=[loss - 0.01, loss + (-loss / 2 if costs else 0.01)])
    return {
        'verdict': verdict,
        'mi_bits': 0.75,
        'mi_given_level_bits': bits / 2,
        'ceiling_bits': 0.4,
        'relative_size': dict(mi_bits=bits, ceiling_bits=1.58),
        'swap': swap,
        'random_gates': dict(quantile=place, count=200),
        'sorts': dict(detection=sorts, training=sorts),
    } | changes


def setting_of(*runs: tuple, cost: float = 0.776, verdicts: dict | None = None) -> dict:
    """A setting of runs (AP, class layer, box layer), or (AP,) without experts."""
    found = [
        {
            'ap': dict.fromkeys(('AP', 'AP_S', 'AP_M', 'AP_L'), ap),
            'layers': dict(zip((CLS, REG), layers, strict=False)),
            'multiply_adds_over_dense': dict(head=cost, model=(1 + cost) / 2),
        }
        for ap, *layers in runs
    ]
    over = {name: dict(verdict=verdict, sentence=f'{verdict}!') for name, verdict in (verdicts or {}).items()}
    return dict(epochs=4, runs=found, seeds=dict(layers=over) if over else None)


DENSE = setting_of((0.70,), (0.71,), (0.72,), cost=1.0)
NOTHING = layer_of()
FULL = dict(sorts=True, place=0.99, costs=True, loss=-0.021, verdict='size-specialised')


def text_of(settings: dict, **record) -> str:
    return page({'settings': settings, **record}, [*settings, 'soft-never-run'])


def cells(text: str, heading: str, start: str) -> list[str]:
    """The first line below a heading that starts so."""
    return table_cells(text.split(heading, 1)[1], start)[0]


def test_the_tables():
    runs = (0.62, layer_of(0.04, loss=-0.003), layer_of(0.05, **FULL)), (0.64, layer_of(0.06), layer_of(0.07))
    text = text_of({'dense': DENSE, 'soft-level-all': setting_of(*runs)}, expected=['It sorts.'])
    assert cells(text, '## Average precision', '`dense`')[1:] == [
        '3', '1.000', '1.000', *['71.0 ± 1.0'] * 4, ''
    ]  # fmt: skip
    found = cells(text, '## Average precision', '`soft-level-all`')
    assert found[1:8] == ['2', '0.776', '0.888', *['63.0 ± 1.4'] * 4]
    # Welch's interval by SciPy, in points
    interval = ttest_ind([62, 64], [70, 71, 72], equal_var=False).confidence_interval(0.95)
    assert found[8] == f'-8.0 [{interval.low:+.1f}, {interval.high:+.1f}]'
    assert cells(text, '### Class branch', '`soft-level-all`')[1:] == [
        '0.020, 0.030 of 0.40', '0.040, 0.060 of 1.58', '0 of 2', '50, 50', *['-0.2 (0 of 2)'] * 4, '0.750, 0.750',
    ]  # fmt: skip
    assert cells(text, '### Box branch', '`soft-level-all`')[3:9] == ['1 of 2', '99, 50', *['-1.1 (1 of 2)'] * 4]
    assert cells(text, '## Verdicts', '`soft-level-all`')[1:] == [
        'not specialised; not specialised', '-', 'size-specialised; not specialised', '-',
    ]  # fmt: skip
    assert '## What was expected\n\nWritten down before' in text and ':\n\n- It sorts.\n' in text
    assert 'Not run yet: `soft-never-run`.' in text
    assert '`dense`' not in text.split('## The three questions')[1].split('## What came out')[0]


def test_numbers_that_are_missing():
    bare = layer_of(relative_size=None, swap=None, random_gates=None) | dict(sorts=dict(detection=None, training=None))
    text = text_of({'soft-level-all': setting_of((0.6, bare, bare))})
    found = cells(text, '### Class branch', '`soft-level-all`')
    assert found[1:] == ['0.010 of 0.40', '-', '0 of 1', '-', '-', '-', '-', '-', '0.750']
    assert 'expected' not in text and 'Not run yet' in text
    assert text_of({}).count('No setting with experts has been measured yet.') == 1


def outcome(text: str) -> str:
    return text.split('## What came out')[1]


def test_an_established_setting_is_named_with_its_branch():
    settings = {
        'soft-level-all': setting_of(*[(0.6, NOTHING, NOTHING)] * 3),
        'hard-image-all': setting_of(
            *[(0.6, NOTHING, layer_of(**FULL))] * 3, verdicts={CLS: 'not established', REG: 'established'}
        ),
    }
    text = outcome(text_of(settings))
    assert 'Established as size-specialised over seeds: `hard-image-all`, box branch.' in text
    assert 'Closest' not in text and 'No setting is established' not in text


def test_without_one_it_is_said_and_the_closest_are_named():
    near = layer_of(sorts=True, place=0.5, loss=-0.02, costs=True, verdict='specialised, not by size')
    settings = {
        'soft-level-all': setting_of(*[(0.6, NOTHING, layer_of(sorts=True))] * 3),
        'boxes-level-level': setting_of(*[(0.6, near, NOTHING)] * 2, (0.6, NOTHING, NOTHING)),
        'hard-level-all': setting_of((0.6, layer_of(**FULL), layer_of(**FULL))),  # one seed
    }
    text = outcome(text_of(settings))
    assert '**No setting is established as size-specialised.**' in text
    assert (
        'Closest to it: `boxes-level-level` (guided), class branch (3 seeds; sorting beyond the level in both units: '
        '2, also more than random gates: 0, losing AP under the swap: 2, size-specialised: 0).'
    ) in text
    assert 'Fewer than 3 seeds, so nothing can be established: `hard-level-all`.' in text


def test_unconditioned_bits_decide_nothing():
    def closest(bits: float) -> str:
        other = setting_of(*[(0.6, layer_of(mi_bits=bits), NOTHING)] * 3)
        sorted_by = setting_of(*[(0.6, layer_of(sorts=True), NOTHING)] * 3)
        return outcome(text_of({'hard-image-all': other, 'soft-level-all': sorted_by}))

    assert closest(9.0) == closest(0.0)
    assert 'Closest to it: `soft-level-all`, class branch' in closest(9.0)


def test_swap_and_sorting_in_words():
    paper = setting_of((0.6, layer_of(0.03, loss=-0.02), layer_of(0.05, sorts=True, place=0.96, loss=-0.03)))
    image = setting_of((0.6, layer_of(-0.01, loss=-0.016), layer_of(0.10, sorts=True, place=0.95, loss=0.01)))
    text = outcome(text_of({'soft-level-all': paper, 'hard-image-all': image, 'soft-patch2-all': paper}))
    assert (
        'in points, mean over seeds: `soft-level-all` class branch -2.0, box branch -3.0; `hard-image-all` class '
        'branch -1.6, box branch +1.0.'
    ) in text
    assert 'Class branch: relative size given the level -0.010 to 0.030 bits; of 3 runs 0 sort' in text
    assert (
        'Box branch: relative size given the level 0.050 to 0.100 bits; of 3 runs 3 sort by it in both units, 2 of '
        'these more than random gates do.'
    ) in text


def test_cost_and_dense_in_words():
    def runs(*aps: float) -> list[tuple]:
        return [(ap, NOTHING, NOTHING) for ap in aps]

    settings = {
        'dense': DENSE,
        'soft-level-all': setting_of(*runs(0.62, 0.63, 0.64)),
        'soft-level-all-matched': setting_of(*runs(0.69, 0.71, 0.73), cost=1.04),
        'soft-patch3-all': setting_of(*runs(0.80, 0.81, 0.82), cost=1.41),
        'soft-patch2-all': setting_of(*runs(0.5)),
    }
    text = outcome(text_of(settings))
    assert "`soft-level-all` runs 0.776 of dense's multiply-adds in the head (0.888 in the whole model)" in text
    assert 'below: `soft-level-all`; above: `soft-patch3-all`; not told from it: `soft-level-all-matched`.' in text
    assert '(head within 5 %): `soft-level-all-matched` not told from it, +0.0 points.' in text
    assert '`soft-patch2-all`' not in text.split('AP against dense')[1]
    equal = {'soft-level-all': setting_of(*runs(0.6), cost=0.99)}
    assert 'no comparison at equal cost' not in text_of(equal)


def test_soft_and_hard_are_told_apart_only_by_an_interval():
    def text(soft: list[float], hard: list[float], **changes) -> str:
        pair = {
            'soft-level-all': setting_of(*[(ap, layer_of(**changes), NOTHING) for ap in soft]),
            'hard-level-all': setting_of(*[(ap, NOTHING, NOTHING) for ap in hard]),
        }
        return outcome(text_of(pair))

    # 99 % for each of five comparisons: SciPy's own interval
    low, high = ttest_ind([60, 62, 64], [63, 64, 65], equal_var=False).confidence_interval(0.99)
    found = text([0.60, 0.62, 0.64], [0.63, 0.64, 0.65])
    assert '`soft-level-all` minus `hard-level-all`, 5 Welch intervals' in found
    assert f'cannot be told apart (AP -2 [{low:+.3g}, {high:+.3g}] points)' in found
    # beyond 95 %, yet not beyond what five comparisons ask for
    soft, hard = [0.60, 0.61, 0.62], [0.63, 0.64, 0.65]
    assert ttest_ind(soft, hard, equal_var=False).pvalue < 0.05 and 'cannot be told apart' in text(soft, hard)
    assert 'they differ in AP -20 [' in text([0.40, 0.41, 0.42], [0.60, 0.61, 0.62])
    assert 'they differ in bits of relative size, class branch +0.08' in text(soft, hard, bits=0.1)
    assert 'too few seeds to compare them' in text([0.1], [0.9])


def test_welch():
    first, second = [1.0, 2.0, 4.0, None], [0.0, 0.5]
    found = welch(first, second, 0.9)
    expected = ttest_ind(first[:3], second, equal_var=False).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(7 / 3 - 0.25) and not found.apart
    assert welch([1.0], second) is None and welch([1.0, None], second) is None
    assert welch([1.0, 1.0], [0.5, 0.5]).apart
