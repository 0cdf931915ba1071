"""Seeds, spread and fairness of a comparison, on results written by hand."""

from __future__ import annotations

import dataclasses
import json
import statistics

import pytest
from small_files import table_cells

from moe_det.analysis.comparison import RunResult, Spread, compare, comparison_dict, comparison_markdown
from moe_det.errors import DataError


def result(name: str, ap: float, weights: str, large: float | None = 0.7, **changes) -> RunResult:
    values = dict(
        name=name,
        config='c.py',
        checkpoint=f'{weights}.pth',
        checkpoint_sha256=weights,
        seed=0,
        experts='dense',
        ap=dict(AP=ap, AP50=0.9, AP75=0.8, AP_S=0.3, AP_M=0.5, AP_L=large),
        images=200,
        annotations='val.json',
        annotations_sha256='a',
        params=36_330_000,
        active_params=36_330_000,
        macs=2_500_000_000,
        input_size=(800, 1333),
    )
    return RunResult(**{**values, **changes})


def test_table_has_one_line_per_name_and_a_spread_only_over_seeds():
    soft = dict(experts='soft, 2 of 4 per level', params=50_000_000, active_params=40_000_000, macs=None)
    rows = compare(
        [result('dense', 0.849, 'a'), result('soft', 0.80, 'b', **soft), result('soft', 0.82, 'c', **soft)]
        + [result('soft', 0.87, 'd', **soft)]
    )
    text = comparison_markdown(rows)
    head, rule, dense, experts = table_cells(text)
    assert len(head) == len(rule) == len(dense) == len(experts)
    assert dense == ['dense', 'dense', '1', '84.9', '30.0', '50.0', '70.0', '36.33 M', '36.33 M', '2.50']
    # mean 0.83, deviations -3, -1, 4 points: sqrt((9 + 1 + 16) / 2) = 3.606
    assert experts[2:5] == ['3', '83.0 ± 3.6', '30.0 ± 0.0']
    assert experts[7:] == ['50.00 M', '40.00 M', '–']
    assert 'One seed each: dense;' in text and '200 test images' in text and '800 × 1333' in text
    stored = json.loads(json.dumps(comparison_dict(rows)))['runs']['soft']
    assert stored['n'] == 3 and [run['checkpoint'] for run in stored['checkpoints']] == ['b.pth', 'c.pth', 'd.pth']
    assert stored['measures']['AP']['deviation'] == pytest.approx(statistics.stdev([0.80, 0.82, 0.87]))


def test_no_seed_is_left_out_of_a_mean_unseen():
    assert Spread.of([0.5, None]).points() == '–'
    assert Spread.of([]).points() == '–'
    assert Spread.of([0.5]).points() == '50.0'
    rows = compare([result('a', 0.5, 'x', large=None)])
    assert table_cells(comparison_markdown(rows))[2][6] == '–'


def test_a_comparison_without_single_seeds_says_so():
    text = comparison_markdown(compare([result('a', 0.5, 'x'), result('a', 0.6, 'y')]))
    assert 'One seed' not in text and '±' in text.splitlines()[-1]
    assert '±' not in comparison_markdown(compare([result('a', 0.5, 'x')]))


@pytest.mark.parametrize(
    ('second', 'message'),
    [
        (result('b', 0.5, 'y', annotations_sha256='other', annotations='o.json'), 'b is tested on o.json'),
        (result('a', 0.5, 'x'), 'the same weights'),
        (result('a', 0.5, 'y', params=1), 'another model'),
        (result('a', 0.5, 'y', experts='soft'), 'another model'),
    ],
)
def test_unfair_comparisons_are_refused(second, message):
    with pytest.raises(DataError, match=message):
        compare([result('a', 0.5, 'x'), second])
    compare([result('a', 0.5, 'x'), dataclasses.replace(result('b', 0.5, 'x'), params=1)])  # the same under two names
