"""Outputs sorted by expert are summed per row: beside a loop, its gradient, and rows without any expert."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from moe_det.routing.weighted_rows import WeightedRows, sums_rows

ROWS, TOP_K, EXPERTS, CHANNELS = 7, 2, 3, 5


def sorted_choices() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chosen experts (R, K), where each choice's output is, the choices in the order of the outputs, and their rows."""
    torch.manual_seed(0)
    chosen = torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in range(ROWS)])
    order = torch.sort(chosen.flatten(), stable=True).indices
    return chosen, torch.argsort(order), order, order // TOP_K


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_it_is_the_weighted_sum_of_each_rows_outputs(dtype):
    chosen, places, order, rows = sorted_choices()
    of_expert = torch.randn(EXPERTS, ROWS, CHANNELS, dtype=dtype)
    weights = torch.rand(ROWS, TOP_K, dtype=dtype)
    weights[3] = 0  # no expert
    outputs = torch.stack([of_expert[chosen.flatten()[i], i // TOP_K] for i in order.tolist()])
    found = WeightedRows.apply(outputs, weights, places, order, rows)
    expected = [sum(weights[r, k] * of_expert[chosen[r, k], r] for k in range(TOP_K)) for r in range(ROWS)]
    torch.testing.assert_close(found, torch.stack(expected))
    assert not found[3].any()
    assert torch.equal(found, WeightedRows.apply(outputs, weights, places, order, rows))
    outputs[places[2 * TOP_K]] = float('nan')
    spoilt = WeightedRows.apply(outputs, weights, places, order, rows)
    assert spoilt.isnan().any(1).nonzero().tolist() == [[2]]


def test_gradcheck():
    _, places, order, rows = sorted_choices()
    outputs = torch.randn(ROWS * TOP_K, CHANNELS, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(ROWS, TOP_K, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *given: WeightedRows.apply(*given, places, order, rows), (outputs, weights))


def test_maps_and_half_precision_are_left_to_others():
    assert sums_rows(torch.zeros(2, 3)) and not sums_rows(torch.zeros(2, 3, 4))
    assert not sums_rows(torch.zeros(2, 3, dtype=torch.bfloat16))
