"""Soft constraints against values derived by hand, finite differences and their limits.

The hand example has 4 rows, 3 experts, K = 2. Probabilities, chosen experts and weights (p_i / sum of the kept p):

    row 0: (.60, .20, .20)   -> 0: .75, 1: .25 (a tie: the lower index)
    row 1: (.40, .20, .40)   -> 0: .50, 2: .50
    row 2: (.32, .48, .20)   -> 1: .60, 0: .40
    row 3: (.855, .095, .05) -> 0: .90, 1: .10

    importance (2.55, 0.95, 0.50), load (4, 3, 1), summed probabilities (2.175, 0.975, 0.850)
"""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from moe_det.routing import (
    EntropyConstraint,
    ImportanceConstraint,
    KLConstraint,
    Router,
    SwitchConstraint,
    ZLossConstraint,
)

PROBS = [[0.60, 0.20, 0.20], [0.40, 0.20, 0.40], [0.32, 0.48, 0.20], [0.855, 0.095, 0.05]]
SHIFTS = [1.0, -2.0, 0.0, 3.0]  # logsumexp of each row's logits
ALL = [ImportanceConstraint, KLConstraint, SwitchConstraint, EntropyConstraint, ZLossConstraint]


def entropy(shares: list[float]) -> float:
    return -sum(p * math.log(p) for p in shares if p > 0)


def hand_logits() -> torch.Tensor:
    logits = torch.tensor(PROBS, dtype=torch.float64).log()
    return logits + torch.tensor(SHIFTS, dtype=torch.float64)[:, None]


# mean 4/3, deviations (73, -23, -50)/60: variance 8358/3600/2, over 16/9
CV_SQUARED = 8358 / 3600 / 2 / (16 / 9)
KL = sum(p * math.log(3 * p) for p in (2.55 / 4, 0.95 / 4, 0.5 / 4))
SWITCH = 3 * (4 / 8 * 2.175 / 4 + 3 / 8 * 0.975 / 4 + 1 / 8 * 0.85 / 4)
ENTROPY = sum(entropy(p) for p in PROBS) / 4 - entropy([2.175 / 4, 0.975 / 4, 0.85 / 4])
Z = (1 + 4 + 0 + 9) / 4
HAND = {
    ImportanceConstraint: CV_SQUARED,
    KLConstraint: KL,
    SwitchConstraint: SWITCH,
    EntropyConstraint: ENTROPY,
    ZLossConstraint: Z,
}

# rows 0 and 1 in one group, rows 2 and 3 in another, whose expert 2 has no importance
FIRST = ([1.25, 0.25, 0.5], [2, 1, 1], [1.0, 0.4, 0.6])
LAST = ([1.3, 0.7, 0.0], [2, 2, 0], [1.175, 0.575, 0.25])


def group_value(kind: type, importance: list[float], load: list[int], probs: list[float], rows: list[int]) -> float:
    """The unweighted loss of a group of two rows, in plain Python."""
    if kind is ImportanceConstraint:
        return statistics.variance(importance) / statistics.mean(importance) ** 2
    if kind is KLConstraint:
        return math.log(3) - entropy([i / 2 for i in importance])
    if kind is SwitchConstraint:
        return 3 * sum(chosen / 4 * p / 2 for chosen, p in zip(load, probs, strict=True))
    if kind is EntropyConstraint:
        return sum(entropy(PROBS[r]) for r in rows) / 2 - entropy([p / 2 for p in probs])
    return sum(SHIFTS[r] ** 2 for r in rows) / 2


@pytest.mark.parametrize('kind', ALL)
def test_value_by_hand(kind, routing_from):
    loss = kind(weight=0.5).loss(routing_from(hand_logits(), 2))
    assert loss.item() == pytest.approx(0.5 * HAND[kind], abs=1e-8)


@pytest.mark.parametrize('kind', ALL)
def test_groups_are_averaged_and_empty_ones_ignored(kind, routing_from):
    expected = (group_value(kind, *FIRST, [0, 1]) + group_value(kind, *LAST, [2, 3])) / 2
    two = kind(weight=2).loss(routing_from(hand_logits(), 2, [0, 0, 1, 1], 2)).item()
    four = kind(weight=2).loss(routing_from(hand_logits(), 2, [1, 1, 3, 3], 4)).item()
    assert two == pytest.approx(2 * expected, abs=1e-7)
    assert four == pytest.approx(two, abs=1e-12)


@pytest.mark.parametrize('top_k', [1, 2])
@pytest.mark.parametrize('kind', ALL)
def test_gradient_by_finite_differences(kind, top_k, routing_from):
    # no two logits of a row closer than the step of the finite differences, else the choice would change
    logits = torch.tensor(
        [[0.1, 0.9, -0.4], [1.2, -0.3, 0.4], [-0.6, 0.2, 0.7], [0.5, 1.5, 0.0], [0.3, -1.0, 0.8]], dtype=torch.float64
    ).requires_grad_()
    constraint = kind(weight=0.7)
    assert gradcheck(lambda h: constraint.loss(routing_from(h, top_k, [0, 2, 0, 2, 2], 3)), logits)


@pytest.mark.parametrize('top_k', [1, 2])
@pytest.mark.parametrize('kind', ALL)
def test_gradient_with_an_expert_of_zero_importance(kind, top_k, routing_from):
    logits = torch.tensor([[2.0, 0.5, -3.0], [1.0, 2.2, -4.0], [3.0, 1.0, -5.0]], dtype=torch.float64)
    routing = routing_from(logits, top_k)
    assert routing.usage.importance[0, 2] == 0
    constraint = kind(weight=1.0)
    assert gradcheck(lambda h: constraint.loss(routing_from(h, top_k)), logits.requires_grad_())


@pytest.mark.parametrize('kind', ALL)
@pytest.mark.parametrize(
    ('rows', 'experts', 'top_k', 'groups'),
    [(1, 1, 1, 1), (5, 1, 1, 1), (1, 3, 1, 1), (1, 3, 2, 2), (1, 3, 3, 1), (0, 3, 2, 1), (0, 1, 1, 3), (2, 2, 2, 5)],
)
def test_finite_in_the_limits(kind, rows, experts, top_k, groups, routing_from):
    for scale in (0.0, 1.0, 1e4):
        logits = (scale * torch.randn(rows, experts)).requires_grad_()
        loss = kind().loss(routing_from(logits, top_k, [i % groups for i in range(rows)], groups))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss), (kind, scale)
        assert torch.isfinite(gradient).all(), (kind, scale)
        if rows == 0:
            assert loss == 0


def test_single_expert_is_balanced(routing_from):
    routing = routing_from(torch.randn(6, 1), 1)
    assert ImportanceConstraint().loss(routing) == 0
    assert KLConstraint().loss(routing).item() == pytest.approx(0, abs=1e-6)
    assert EntropyConstraint().loss(routing).item() == pytest.approx(0, abs=1e-6)
    assert SwitchConstraint(1.0).loss(routing).item() == pytest.approx(1)


@pytest.mark.parametrize('experts', [2, 4, 7])
def test_extremes(experts, routing_from):
    # collapse: all weight on one expert. I = (s, 0, ..): unbiased variance s^2/E, mean^2 s^2/E^2 -> CV^2 = E
    collapsed = routing_from(torch.tensor([[50.0] + [0.0] * (experts - 1)] * 6, dtype=torch.float64), 1)
    assert ImportanceConstraint(1.0).loss(collapsed).item() == pytest.approx(experts)
    assert KLConstraint(1.0).loss(collapsed).item() == pytest.approx(math.log(experts))
    assert SwitchConstraint(1.0).loss(collapsed).item() == pytest.approx(experts)
    assert EntropyConstraint(1.0).loss(collapsed).item() == pytest.approx(0, abs=1e-8)
    # each expert gets one row for sure: balanced and decided
    balanced = routing_from(50 * torch.eye(experts, dtype=torch.float64), 1)
    assert ImportanceConstraint(1.0).loss(balanced).item() == pytest.approx(0, abs=1e-12)
    assert KLConstraint(1.0).loss(balanced).item() == pytest.approx(0, abs=1e-12)
    assert SwitchConstraint(1.0).loss(balanced).item() == pytest.approx(1)
    assert EntropyConstraint(1.0).loss(balanced).item() == pytest.approx(-math.log(experts))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_ranges(routing_from, data):
    experts = data.draw(st.integers(2, 5))
    top_k = data.draw(st.integers(1, experts))
    row = st.lists(st.floats(-30, 30), min_size=experts, max_size=experts)
    rows = data.draw(st.lists(row, min_size=1, max_size=6))
    routing = routing_from(torch.tensor(rows, dtype=torch.float64), top_k)
    assert -1e-9 <= KLConstraint(1.0).loss(routing).item() <= math.log(experts) + 1e-9
    assert 0 <= ImportanceConstraint(1.0).loss(routing).item() <= experts + 1e-9
    assert -math.log(experts) - 1e-9 <= EntropyConstraint(1.0).loss(routing).item() <= 1e-9


def test_default_weights_are_the_papers():
    assert ImportanceConstraint().weight == 0.5
    assert KLConstraint().weight == 0.25


@pytest.mark.parametrize('kind', ALL)
def test_the_gates_gradient_is_linear_in_the_weight(kind, echo_gate, as_maps, route_rows):
    def gradient(weight: float) -> torch.Tensor:
        router = Router(echo_gate(3, 3), [kind(weight=weight)], top_k=2, noise=False).double().train()
        route_rows(router, as_maps(hand_logits()))
        (loss,) = router.collect().values()
        loss.backward()
        return router.gate.scale.grad

    once = gradient(0.3)
    assert once.abs().max() > 1e-3
    assert torch.equal(gradient(0.0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(gradient(0.6), 2 * once, rtol=1e-12, atol=0)
