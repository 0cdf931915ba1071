"""Layers that mmdet builds, under an attentive gate."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from moe_det.errors import MoEConfigError
from moe_det.layers import MoEBlock, MoEConv2d

GATE = {'type': 'AttentiveGate', 'hidden_channels': 6}
KL = {'type': 'KLConstraint', 'weight': 1.0}


def mixed(layer, x: torch.Tensor) -> torch.Tensor:
    """What an MoE layer computes with two of three experts, from its parts."""
    outputs = torch.stack([expert(x) for expert in layer.expert_group.experts], 1)
    logits = layer.router.gate(x, outputs.mean((3, 4)))
    kept, chosen = logits.topk(2)
    weights = torch.zeros_like(logits).scatter(1, chosen, kept.softmax(1))
    return (weights[:, :, None, None, None] * outputs).sum(1)


@pytest.mark.parametrize('dispatch', ['sorted', 'all'])
def test_convolution(dispatch):
    layer = MoEConv2d(3, 5, 3, stride=2, padding=1, num_experts=3, top_k=2, gate=GATE, dispatch=dispatch).eval()
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(layer(x), mixed(layer, x))


def test_block():
    layer = MoEBlock(8, num_experts=3, top_k=2, gate=GATE).eval()
    for expert in layer.moe.expert_group.experts:
        torch.nn.init.normal_(expert[-1].weight)
    x = torch.randn(4, 8, 4, 4)
    torch.testing.assert_close(layer(x), x + mixed(layer.moe, x))


def test_the_query_may_be_any_gate():
    query = {'type': 'ConvGAPGate', 'hidden_channels': 7}
    layer = MoEConv2d(3, 5, 3, padding=1, num_experts=3, top_k=2, gate={**GATE, 'query': query})
    assert layer.router.gate.query.conv.weight.shape == (7, 3, 3, 3)
    assert layer.router.gate.query.fc.weight.shape == (6, 7)
    assert layer(torch.randn(2, 3, 6, 6)).shape == (2, 5, 6, 6)


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpointing_changes_nothing(reentrant):
    results = []
    for repeat in (False, True):
        torch.manual_seed(3)
        layer = MoEConv2d(3, 5, 3, num_experts=3, top_k=2, gate=GATE, constraint=KL, noise=True).double().train()
        torch.nn.init.normal_(layer.router.noise.scale.weight)
        x = torch.randn(4, 3, 6, 6, dtype=torch.float64, requires_grad=True)
        y = checkpoint(layer, x, use_reentrant=reentrant) if repeat else layer(x)
        loss = layer.router.collect()['kl']
        (y.square().sum() + 5 * loss).backward()
        results.append([loss.detach(), y.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for first, second in zip(*results, strict=True):
        assert first.abs().max() > 1e-6
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ('gate', 'message'),
    [
        ({'hidden_channels': 0}, 'gate: AttentiveGate: hidden_channels=0'),
        ({'query': {'type': 'GAPLiner'}}, r"gate\.query: unknown moe gate 'GAPLiner'"),
        ({'query': dict(GATE)}, r'gate\.query: AttentiveGate needs the features of experts'),
        ({'hidden': 3}, 'gate: AttentiveGate: .*hidden'),
    ],
)
def test_bad_values(gate, message):
    with pytest.raises(MoEConfigError, match=message):
        MoEConv2d(3, 5, 3, num_experts=3, top_k=2, gate={**GATE, **gate})
