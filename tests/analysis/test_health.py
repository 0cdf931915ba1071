"""The judgement of router_health.py on sums written by hand."""

from __future__ import annotations

import pytest
import torch

from moe_det.analysis.health import HealthLimits, health_report, health_table, judge_layer
from moe_det.routing.routing import Usage


def usage(*groups: list[float], rows: int = 100, top_k: int = 2) -> Usage:
    """Sums of balance groups whose weights, choices and probabilities are all spread by the given shares."""
    shares = torch.tensor(groups)
    entropy = torch.full((len(groups),), float(rows))
    return Usage(shares * rows, shares * rows * top_k, shares * rows, entropy, torch.full((len(groups),), float(rows)))


@pytest.mark.parametrize(
    ('shares', 'top_k', 'problems'),
    [
        ([0.25, 0.25, 0.25, 0.25], 2, 0),
        ([0.49, 0.49, 0.02, 0.0], 2, 0),  # three live, a row uses two
        ([0.5, 0.5, 0.0, 0.0], 2, 1),
        ([0.497, 0.497, 0.006, 0.0], 2, 1),  # a share below 1 % is no life
        ([0.0, 0.0, 1.0, 0.0], 2, 1),
        ([1.0, 0.0], 1, 1),
        ([0.9, 0.1], 1, 0),
        ([0.6, 0.4], 2, 0),  # a row uses all: only one living expert is a collapse
        ([1.0, 0.0], 2, 1),
        ([1.0], 1, 0),
    ],
)
def test_collapse_is_no_more_living_experts_than_a_row_uses(shares, top_k, problems):
    judged = judge_layer('head', usage(shares), top_k)
    assert len(judged.problems) == problems
    assert ('COLLAPSED' in health_table([judged])) == bool(problems)
    assert judged.to_dict()['healthy'] == (not problems)


def test_limits_move_the_judgement():
    used = usage([0.7, 0.2, 0.08, 0.02])
    assert not judge_layer('head', used, 2).problems
    assert 'expected 4 or more' in judge_layer('head', used, 2, HealthLimits(0.03, min_living=4)).problems[0]
    assert not judge_layer('head', used, 2, HealthLimits(min_living=4)).problems
    assert 'hold more than 0.1 of the weights' in judge_layer('head', used, 2, HealthLimits(0.1)).problems[0]
    # 0.7 of all choices among four experts: 2.8 times the fair quarter
    assert not judge_layer('head', used, 2, HealthLimits(max_load_ratio=2.81)).problems
    (problem,) = judge_layer('head', used, 2, HealthLimits(max_load_ratio=2.79)).problems
    assert problem == 'head, all rows: expert 0 has 2.80 times the fair load, the limit is 2.79'


def test_a_level_that_collapsed_is_found_behind_balanced_totals():
    used = usage([0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5])
    assert not judge_layer('head', used, 2).problems
    judged = judge_layer('head', used, 2, by_level=True)
    assert [part.part for part in judged.parts] == ['all rows', 'level 0', 'level 1']
    assert [text.split(':')[0] for text in judged.problems] == ['head, level 0', 'head, level 1']
    table = health_table([judged]).splitlines()
    assert [line.split()[-1] for line in table[1:]] == ['healthy', 'COLLAPSED', 'COLLAPSED']
    report = health_report([judged], HealthLimits(), {'images': 7})
    assert report['images'] == 7 and report['healthy'] is False and len(report['problems']) == 2
    # entropy: 100 nats over 100 rows, in bits
    assert report['layers']['head']['parts'][1]['row_entropy'] == pytest.approx(1.4427, abs=1e-4)


def in_slots(*slots: list[float], rows: int = 100) -> Usage:
    """Sums of one balance group in which a row chooses one copy of each slot; shares are those inside the slots."""
    shares = torch.tensor([slots]).flatten(1)
    probs = shares / len(slots)
    entropy = rows * torch.special.entr(probs).sum(1)
    return Usage(shares * rows, shares * rows, probs * rows, entropy, torch.full((1,), float(rows)))


@pytest.mark.parametrize(
    ('slots', 'collapsed'),
    [
        ([[0.25] * 4, [0.25] * 4], []),
        ([[0.25] * 4, [1.0, 0, 0, 0]], [1]),  # five experts live, more than the two that a row uses
        ([[0.995, 0.005, 0, 0], [0, 0, 0, 1.0]], [0, 1]),
        ([[0.985, 0.015, 0, 0], [0.5, 0.5, 0, 0]], []),  # 1.5 % of its shard, 0.75 % of all weights
        ([[1.0], [1.0]], []),  # a single copy of each cannot collapse
    ],
)
def test_every_shard_is_judged(slots, collapsed):
    used = in_slots(*slots)
    judged = judge_layer('head', used, len(slots), slots=len(slots))
    assert [text.split(': ')[1] for text in judged.problems] == [f'shard {slot}' for slot in collapsed]
    assert judged.to_dict()['slots'] == 2
    assert judged.parts[0].used.living == sum(share > 0.01 for slot in slots for share in slot)


def test_numbers_of_a_shard_are_those_of_one_choice():
    slots = [0.5, 0.25, 0.25, 0.0], [0.25] * 4
    (part,) = judge_layer('head', in_slots(*slots), 2, slots=2).parts
    assert part.used.row_entropy == pytest.approx((1.5 + 2) / 2)  # bits of one choice, the mean over the shards
    assert part.used.batch_entropy == pytest.approx((1.5 + 2) / 2)
    assert part.used.load_ratio == pytest.approx([2, 1, 1, 0, 1, 1, 1, 1])
    limits = HealthLimits(max_load_ratio=1.9, min_living=4)
    problems = judge_layer('head', in_slots(*slots), 2, limits, slots=2).problems
    assert [text.partition(', all rows: ')[2] for text in problems] == [
        'shard 0: 3 of 4 copies hold more than 0.01 of the weights each; expected 4 or more',
        'shard 0, copy 0 has 2.00 times the fair load, the limit is 1.9',
    ]


def test_a_few_rows_are_not_judged():
    collapsed = [1.0, 0.0, 0.0, 0.0]
    assert judge_layer('head', usage(collapsed, rows=20), 2).problems
    judged = judge_layer('head', usage(collapsed, rows=19), 2)
    assert not judged.problems and judged.unjudged == ['head, all rows']
    assert 'too few rows' in health_table([judged])
    assert judge_layer('head', usage([0.25] * 4), 2).unjudged == []
