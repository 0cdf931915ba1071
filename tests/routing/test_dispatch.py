"""Dispatch against a loop over rows and experts in float64: outputs and every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_det.routing import (
    GAPLinearGate,
    Router,
    Routing,
    mix_linear,
    mix_probabilities,
    plan_dispatch,
    run_sorted,
    run_unsorted,
    split_patches,
)

INF = float('inf')
CASES = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]  # (E, K)
EXACT = {'rtol': 1e-12, 'atol': 1e-12}


def naive_mix(outputs: list[Tensor], weights: list[Tensor], mixture) -> Tensor:
    if mixture is mix_linear:
        return sum(w * y for w, y in zip(weights, outputs, strict=True))
    p = sum(w * torch.sigmoid(y) for w, y in zip(weights, outputs, strict=True))
    return torch.log(p) - torch.log1p(-p)


def naive_row(row: Tensor, logits: Tensor, experts, top_k: int, mixture=mix_linear) -> Tensor:
    """One row (C, H, W): sort, softmax, one expert after the other."""
    chosen = sorted(range(len(logits)), key=lambda e: (-logits[e].item(), e))[:top_k]
    weights = torch.softmax(logits[chosen], 0) if top_k > 1 else torch.softmax(logits, 0)[chosen]
    return naive_mix([experts[e](row[None])[0] for e in chosen], list(weights), mixture)


def naive_layer(maps, unit, grid, gate, experts, top_k, mixture=mix_linear) -> list[Tensor]:
    """The rows of all levels, each decided and computed on its own."""
    if unit == 'patch':
        maps = [split_patches(m, grid) for m in maps]
    results = []
    for level in maps:
        rows = []
        for i, row in enumerate(level):
            if unit == 'image':
                logits = sum(gate(other[i : i + 1])[0] for other in maps) / len(maps)
            else:
                logits = gate(row[None])[0]
            rows.append(naive_row(row, logits, experts, top_k, mixture))
        results.append(torch.stack(rows))
    return results


def pyramid(images: int, channels: int = 3) -> list[Tensor]:
    """Two levels of different size, with images that the gate can tell apart."""
    offset = torch.linspace(-1, 1, images, dtype=torch.float64)[:, None, None, None]
    sizes = ((5, 4), (2, 3))
    return [(torch.randn(images, channels, *s, dtype=torch.float64) + offset).requires_grad_() for s in sizes]


def gradients(outputs: list[Tensor], tensors: list[Tensor], materialize_grads: bool = False) -> tuple[Tensor, ...]:
    torch.manual_seed(7)
    total = sum((torch.randn_like(y) * y).sum() for y in outputs)
    return torch.autograd.grad(
        total, tensors, allow_unused=True, retain_graph=True, materialize_grads=materialize_grads
    )


@pytest.mark.parametrize('mixture', [mix_linear, mix_probabilities])
@pytest.mark.parametrize('unit', ['level', 'image', 'patch'])
@pytest.mark.parametrize('images', [1, 3])
@pytest.mark.parametrize(('num_experts', 'top_k'), CASES)
def test_sorted_and_dense_equal_the_loop(num_experts, top_k, images, unit, mixture, conv_group, run_layer):
    gate = GAPLinearGate(3, num_experts).double()
    nn.init.normal_(gate.fc.weight, std=3.0)
    router = Router(gate, top_k=top_k, unit=unit).train()
    group = conv_group(num_experts, 3, 2, mixture).train()
    maps = pyramid(images)
    tensors = [*maps, *gate.parameters(), *group.parameters()]

    expected = naive_layer(maps, unit, 2, gate, group.experts, top_k, mixture)
    expected_gradients = gradients(expected, tensors)
    for dispatch in ('sorted', 'all'):
        group.dispatch = dispatch
        outputs = run_layer(router, group, maps, unit, 2)
        for actual, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(actual, wanted, **EXACT)
        for actual, wanted in zip(gradients(outputs, tensors), expected_gradients, strict=True):
            # an expert that nobody chose has no part in the loop; here it has a zero gradient, not None
            torch.testing.assert_close(actual, torch.zeros_like(actual) if wanted is None else wanted, **EXACT)


def routing_with(choices: list[list[int]], num_experts: int, top_k: int, log_weights: Tensor) -> Routing:
    """A routing whose rows chose ``choices``; rows with fewer than K experts get *no expert* for the rest."""
    padded = [[*row, *[num_experts] * (top_k - len(row))] for row in choices]
    indices = torch.tensor(padded, dtype=torch.long).reshape(len(choices), top_k)
    kept = log_weights.masked_fill(indices == num_experts, -INF)
    logits = torch.zeros(len(choices), num_experts, dtype=torch.float64)
    groups = torch.zeros(len(choices), dtype=torch.long)
    return Routing(logits, indices, torch.log_softmax(kept, 1), True, groups, 1)


def check_routing(num_experts: int, top_k: int, choices: list[list[int]], split: int, mixture) -> None:
    """Compares both dispatch modes with the loop, for rows ``:split`` on one level and the rest on another."""
    torch.manual_seed(len(choices) + num_experts)
    experts = nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(num_experts)).double()
    counts = (split, len(choices) - split)
    levels = [
        torch.randn(counts[0], 2, 2, 1, dtype=torch.float64, requires_grad=True),
        torch.randn(counts[1], 2, 1, 3, dtype=torch.float64, requires_grad=True),
    ]
    raw = torch.randn(len(choices), top_k, dtype=torch.float64, requires_grad=True)
    tensors = [*levels, raw, *experts.parameters()]
    routing = routing_with(choices, num_experts, top_k, raw)

    rows = [row for level in levels for row in level]
    expected = []
    for row, chosen, kept in zip(rows, choices, raw, strict=True):
        weights = torch.softmax(kept[: len(chosen)], 0)
        expected.append(naive_mix([experts[e](row[None])[0] for e in chosen], list(weights), mixture))
    expected_gradients = gradients(expected, tensors, materialize_grads=True)

    plans = plan_dispatch([routing], counts)[0]
    first = [0, split]
    for outputs in (
        [run_sorted(x, routing, plan, experts, mixture) for x, plan in zip(levels, plans, strict=True)],
        [run_unsorted(x, routing, at, experts, mixture) for x, at in zip(levels, first, strict=True)],
    ):
        flat = [row for level in outputs for row in level]
        for actual, wanted in zip(flat, expected, strict=True):
            torch.testing.assert_close(actual, wanted, **EXACT)
        for actual, wanted in zip(gradients(flat, tensors, materialize_grads=True), expected_gradients, strict=True):
            torch.testing.assert_close(actual, wanted, **EXACT)


@st.composite
def choices_of_rows(draw):
    num_experts = draw(st.integers(1, 5))
    top_k = draw(st.integers(1, min(3, num_experts)))
    row = st.permutations(range(num_experts)).flatmap(
        lambda order: st.integers(1, top_k).map(lambda kept: list(order[:kept]))
    )
    few = draw(st.lists(row, min_size=1, max_size=2))  # collapse: rows repeat one or two decisions
    choices = draw(st.lists(row, min_size=1, max_size=6) | st.lists(st.sampled_from(few), min_size=1, max_size=6))
    return num_experts, top_k, choices, draw(st.integers(0, len(choices)))


@settings(max_examples=250, deadline=None)
@given(choices_of_rows(), st.sampled_from([mix_linear, mix_probabilities]))
def test_any_routing_equals_the_loop(case, mixture):
    check_routing(*case, mixture)


@pytest.mark.parametrize('mixture', [mix_linear, mix_probabilities])
@pytest.mark.parametrize(
    ('num_experts', 'top_k', 'choices', 'split'),
    [
        (4, 1, [[2], [2], [2]], 3),  # collapsed, and a level without rows
        (4, 2, [[1, 3], [3, 1], [1, 3]], 1),  # collapsed, in another order
        (4, 2, [[0], [0], [0]], 2),  # every row has one expert and one *no expert*
        (4, 2, [[0], [1], [0, 1], [3]], 3),  # some *no expert*
        (3, 3, [[0, 1, 2], [2, 1, 0], [1]], 2),  # K = E
        (5, 2, [[4, 0]], 0),  # one row
        (4, 1, [[3], [0], [0], [2], [1]], 3),  # slices in another order than the experts'
        (4, 1, [[3], [0], [3], [1], [2], [1]], 3),  # rows of an expert lie apart
    ],
)
def test_special_routings_equal_the_loop(num_experts, top_k, choices, split, mixture):
    check_routing(num_experts, top_k, choices, split, mixture)


def test_plans_of_two_routings_over_the_same_rows():
    # rows 0, 1 on level 0 and row 2 on level 1; 3 experts
    first = routing_with([[2, 0], [0, 1], [1]], 3, 2, torch.zeros(3, 2, dtype=torch.float64))
    second = routing_with([[1], [1], [0]], 3, 1, torch.zeros(3, 1, dtype=torch.float64))
    plans = plan_dispatch([first, second], (2, 1))
    assert [plan.counts for plan in plans[0]] == [(2, 1, 1, 0), (0, 1, 0, 1)]
    assert [plan.active for plan in plans[0]] == [[0, 1, 2], [1]]
    assert [plan.counts for plan in plans[1]] == [(0, 2, 0, 0), (1, 0, 0, 0)]
    # sorted assignments of level 0: expert 0 has rows 0 and 1, expert 1 row 1, expert 2 row 0
    assert plans[0][0].order.tolist() == [1, 2, 3, 0]
    assert plans[0][0].rows.tolist() == [0, 1, 1, 0]
    assert plans[0][0].places.tolist() == [3, 0, 1, 2]
    assert [plan.first_row for plan in plans[0]] == [0, 2]
    # everywhere else the rows of a level agree
    assert [plan.places is None for plan in (plans[0][1], *plans[1])] == [True, True, True]


@pytest.mark.parametrize(
    ('choices', 'slices'),
    [
        ([[1], [0], [2]], (1, 0, 2)),
        ([[2], [2], [0], [1], [1]], (2, 0, 1)),
        ([[1], [1]], (1,)),
        ([[1], [0], [1]], ()),  # rows of expert 1 lie apart
        ([[0, 1], [2, 1]], ()),  # two choices per row
        ([[0], [], [2]], (0, 3, 2)),  # the second row has no expert
    ],
)
def test_rows_that_follow_each_other_are_slices(choices, slices):
    top_k = max(map(len, choices))
    routing = routing_with(choices, 3, top_k, torch.zeros(len(choices), top_k, dtype=torch.float64))
    (plan,) = plan_dispatch([routing], (len(choices),))[0]
    assert plan.slices == slices
    assert plan.in_place == bool(slices)
    assert (plan.order is None) == plan.in_place
