"""Entmax-1.5 against bisection, values by hand and numerical gradients; as the weights of a router."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from moe_det.errors import CheckpointError
from moe_det.routing import GAPLinearGate, Router, entmax15
from moe_det.routing.entmax import log_entmax15
from moe_det.routing.intervention import Intervention, intervene

INF = float('inf')


def by_bisection(logits: Tensor) -> Tensor:
    """Weights at the threshold where max(z / 2 - tau, 0)^2 sums to 1, which falls with tau."""
    halves = logits / 2
    high = halves.amax(-1, keepdim=True)
    low = high - 1
    for _ in range(100):
        middle = (low + high) / 2
        above = (halves - middle).clamp_min(0).square().sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (halves - low).clamp_min(0).square()


@pytest.mark.parametrize('experts', [1, 2, 5, 64])
@pytest.mark.parametrize('scale', [0.01, 1.0, 30.0])
def test_weights_are_those_of_bisection(experts, scale):
    logits = torch.randn(50, experts, generator=torch.Generator().manual_seed(experts), dtype=torch.float64) * scale
    weights = entmax15(logits)
    torch.testing.assert_close(weights, by_bisection(logits), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(entmax15(logits + 100), weights, rtol=0, atol=1e-12)


def test_values_by_hand():
    # u = (1, 0) / 2: (1/2 - tau)^2 + tau^2 = 1 at tau = (1 - sqrt 7) / 4; two logits that are 2 apart: one weight
    root = 7**0.5
    rows = torch.tensor([[1.0, 0], [2, 0], [5, 5], [-INF, 3]], dtype=torch.float64)
    expected = torch.tensor([[(1 + root) ** 2 / 16, (root - 1) ** 2 / 16], [1, 0], [0.5, 0.5], [0, 1]])
    torch.testing.assert_close(entmax15(rows), expected.double())


def test_gradients_are_numerical_ones_and_zero_weights_give_none():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    assert ((entmax15(logits) == 0).sum(1) > 0).any()
    assert gradcheck(entmax15, (logits.requires_grad_(),))
    log_weights = log_entmax15(logits)
    assert torch.equal(torch.isneginf(log_weights), entmax15(logits) == 0)
    (gradient,) = torch.autograd.grad(log_weights.exp().square().sum(), logits)
    (expected,) = torch.autograd.grad(entmax15(logits).square().sum(), logits)
    torch.testing.assert_close(gradient, expected)


def router_of(**arguments) -> Router:
    torch.manual_seed(0)
    gate = GAPLinearGate(3, 4)
    nn.init.normal_(gate.fc.weight, std=3)
    return Router(gate, top_k=4, weighting='entmax', **arguments)


def test_a_router_leaves_out_experts_without_weight(route_rows):
    router = router_of().eval()
    x = torch.randn(20, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    routing = route_rows(router, x)
    weights = entmax15(router.gate(x))
    torch.testing.assert_close(routing.over_experts(routing.weights, 0.0), weights)
    assert 20 < (routing.indices < 4).sum() < 80 and routing.sums_to_one
    assert torch.equal((routing.indices < 4).sum(1), (weights > 0).sum(1))


def test_a_knocked_out_expert_leaves_its_weight_to_the_others(route_rows):
    model = nn.ModuleDict({'layer': router_of()}).eval()
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    with intervene(model, {'layer': Intervention(knocked_out=1)}):
        routing = route_rows(model['layer'], x)
    others = entmax15(model['layer'].gate(x)[:, [0, 2, 3]])
    torch.testing.assert_close(routing.over_experts(routing.weights, 0.0)[:, [0, 2, 3]], others)
    assert (routing.indices != 1).all()


@pytest.mark.parametrize(('weighting', 'top_k'), [('entmax', 4), ('full_softmax', 4)])
def test_a_checkpoint_tells_how_weights_were_made(weighting, top_k):
    torch.manual_seed(0)
    stored = Router(GAPLinearGate(3, 4), top_k=top_k, weighting=weighting)
    plain = Router(GAPLinearGate(3, 4), top_k=top_k)
    with pytest.raises(CheckpointError, match=rf"checkpoint has .*weighting='{weighting}'.*config .*'softmax'"):
        plain.load_state_dict(stored.state_dict())
    with pytest.raises(CheckpointError, match="checkpoint has .*'softmax'"):
        stored.load_state_dict(plain.state_dict())
    Router(GAPLinearGate(3, 4), top_k=top_k, weighting=weighting).load_state_dict(stored.state_dict())
