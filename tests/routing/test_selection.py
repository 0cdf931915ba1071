"""Selection of experts against values by hand and a plain-Python reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_det.routing import select

INF = float('inf')


def log_of(*rows: list[float]) -> torch.Tensor:
    """Logits whose exponentials are the given numbers."""
    return torch.tensor(rows, dtype=torch.float64).log()


def reference(logits: list[float], masked: list[bool], top_k: int) -> tuple[list[int], list[float]]:
    """One row in plain Python: sort by (-logit, index) among the allowed, softmax over the kept or over all allowed."""
    experts = range(len(logits))
    allowed = [e for e in experts if not masked[e]] or list(experts)
    chosen = sorted(allowed, key=lambda e: (-logits[e], e))[:top_k]
    pool = chosen if top_k > 1 else allowed
    top = max(logits[e] for e in pool)
    total = sum(math.exp(logits[e] - top) for e in pool)
    weights = [math.exp(logits[e] - top) / total for e in chosen]
    missing = top_k - len(chosen)
    return chosen + [len(logits)] * missing, weights + [0.0] * missing


def test_a_single_expert_gets_the_full_softmax_and_the_gate_a_gradient():
    # p = (1, 2, 5) / 8; dw/dh = w (1 - w) for the chosen logit, -w p_j for the others
    logits = log_of([1, 2, 5]).requires_grad_()
    indices, log_weights = select(logits, logits.detach(), 1, False)
    assert indices.tolist() == [[2]]
    weight = log_weights.exp()
    weight.sum().backward()
    assert weight.item() == pytest.approx(5 / 8)
    expected = torch.tensor([[-5 / 8 * 1 / 8, -5 / 8 * 2 / 8, 5 / 8 * 3 / 8]], dtype=torch.float64)
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize(
    ('logits', 'top_k', 'chosen'),
    [([1, 1, 1, 1], 2, [0, 1]), ([0, 1, 1, 0], 3, [1, 2, 0]), ([0, 0, 3, 3], 1, [2]), ([0] * 64, 5, [0, 1, 2, 3, 4])],
)
def test_ties_go_to_the_lowest_index(logits, top_k, chosen):
    rows = torch.tensor([logits] * 3, dtype=torch.float32)
    assert select(rows, rows, top_k, top_k > 1)[0].tolist() == [chosen] * 3


def test_masked_experts_get_no_rows():
    logits = log_of([1, 2, 4], [1, 2, 4], [1, 2, 4])
    allowed = logits.clone()
    allowed[0, 2] = -INF  # kept 2 and 1 -> 2/3, 1/3
    allowed[1, [1, 2]] = -INF  # kept 1 alone -> 1, and nobody
    allowed[2] = -INF  # all masked: as if none were -> 4/6, 2/6
    indices, log_weights = select(logits, allowed, 2, True)
    assert indices.tolist() == [[1, 0], [0, 3], [2, 1]]
    expected = torch.tensor([[2 / 3, 1 / 3], [1, 0], [2 / 3, 1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(log_weights.exp(), expected)
    assert log_weights[1, 1] == -INF


def test_a_single_expert_is_weighted_among_the_allowed_ones():
    # expert 2 is forbidden: 2 / (1 + 2)
    logits = log_of([1, 2, 5])
    indices, log_weights = select(logits, torch.tensor([[0.0, 1.0, -INF]]).double(), 1, False)
    assert indices.tolist() == [[1]]
    assert log_weights.exp().item() == pytest.approx(2 / 3)


def test_a_bias_moves_the_choice_and_not_the_weights():
    # with +10 on expert 0 the kept logits are those of 1 and 4: the weights ignore the bias
    logits = log_of([1, 2, 4])
    indices, log_weights = select(logits, logits + torch.tensor([10.0, 0, 0]), 2, True)
    assert indices.tolist() == [[0, 2]]
    torch.testing.assert_close(log_weights.exp(), torch.tensor([[1 / 5, 4 / 5]], dtype=torch.float64))


@st.composite
def selections(draw):
    """Logits, mask and K; one row in three has all its experts masked or tied."""
    num_experts = draw(st.integers(1, 6))
    top_k = draw(st.integers(1, num_experts))
    value = st.floats(-1e4, 1e4, width=32) | st.sampled_from([-1e4, -1.0, 0.0, 1.0, 1e4])
    row = st.tuples(
        st.lists(value, min_size=num_experts, max_size=num_experts),
        st.lists(st.booleans(), min_size=num_experts, max_size=num_experts) | st.just([True] * num_experts),
    )
    return num_experts, top_k, draw(st.lists(row, min_size=1, max_size=5))


@settings(max_examples=200, deadline=None)
@given(selections())
def test_any_logits_and_masks(case):
    num_experts, top_k, rows = case
    logits = torch.tensor([row[0] for row in rows], dtype=torch.float32, requires_grad=True)
    masked = torch.tensor([row[1] for row in rows])
    indices, log_weights = select(logits, logits.detach().masked_fill(masked, -INF), top_k, top_k > 1)
    weights = log_weights.exp()
    for row, (values, mask) in enumerate(rows):
        chosen, expected = reference(values, mask, top_k)
        assert indices[row].tolist() == chosen
        assert weights[row].tolist() == pytest.approx(expected, abs=2e-6)
    assert torch.isfinite(weights).all()
    assert (weights[indices == num_experts] == 0).all()
    if top_k > 1:
        torch.testing.assert_close(weights.sum(1), torch.ones(len(rows)))
    (weights * torch.randn(weights.shape)).sum().backward()
    assert torch.isfinite(logits.grad).all()
