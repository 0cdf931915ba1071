"""Experts of a convolution whose output the next layer changes in place, while some of them are idle."""

from __future__ import annotations

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from moe_det.layers import MoEConv2d
from moe_det.routing import touch_idle

MOE = {'type': 'MoEConv2d', 'num_experts': 4, 'top_k': 1, 'weighting': 'straight_through'}


@pytest.mark.parametrize('act', ['ReLU', 'LeakyReLU', 'SiLU', 'ELU'])
@pytest.mark.parametrize('unit', ['level', 'patch'])
def test_without_a_norm_an_activation_in_place_trains_as_the_plain_convolution(act, unit):
    torch.manual_seed(0)
    plain = ConvModule(4, 6, 3, padding=1, act_cfg={'type': act}).double()
    grid = {'grid': 2} if unit == 'patch' else {}
    module = ConvModule(4, 6, 3, padding=1, act_cfg={'type': act}, conv_cfg={**MOE, 'unit': unit, **grid}).double()
    for expert in module.conv.expert_group.experts:
        expert.load_state_dict(plain.conv.state_dict())
    for parameter in module.conv.router.gate.parameters():
        nn.init.zeros_(parameter)  # ties: every row takes expert 0
    assert module.activate.inplace

    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    module.train()(ours).square().sum().backward()
    plain.train()(theirs).square().sum().backward()

    first, *idle = module.conv.expert_group.experts
    torch.testing.assert_close(first.weight.grad, plain.conv.weight.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)
    assert all((expert.weight.grad == 0).all() and (expert.bias.grad == 0).all() for expert in idle)


def test_a_value_that_a_layer_has_saved_is_not_overwritten_in_silence():
    class Squares(nn.Module):
        """Its gradient needs its own output."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(x)

    idle = nn.Linear(2, 2)
    x = torch.randn(3, requires_grad=True)
    output = touch_idle(Squares()(x), [idle])
    output.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        output.sum().backward()


def test_an_output_changed_in_place_keeps_its_graph_when_the_layer_is_copied():
    layer = MoEConv2d(2, 2, 1, **{key: value for key, value in MOE.items() if key != 'type'})
    module = nn.Sequential(layer, nn.ReLU(inplace=True)).train()
    twin = copy.deepcopy(module)
    x = torch.randn(2, 2, 4, 4)
    for one in (module, twin):
        one(x).sum().backward()
    gradients = [[p.grad for p in one.parameters()] for one in (module, twin)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
