"""Experts of the user's own class in every slot: the key ``expert``."""

from __future__ import annotations

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmdet.registry import MODELS
from small_models import head, head_losses, pyramid
from torch import Tensor, nn

from moe_det.errors import MoEConfigError
from moe_det.layers import MoEBlock, MoEConv2d, MoEFFN
from moe_det.models import MoEResNet
from moe_det.registry import EXPERTS


class Scaled(nn.Module):
    """A 1x1 convolution times a constant, on maps or tokens."""

    def __init__(self, in_channels: int, out_channels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            return self.scale * self.linear(x)
        return self.scale * self.linear(x.movedim(1, -1)).movedim(-1, 1)


@pytest.fixture(autouse=True)
def registered():
    """The class is known by name meanwhile, in the registry of experts."""
    EXPERTS.register_module(module=Scaled, force=True)
    yield
    EXPERTS.module_dict.pop('Scaled')


MOE = {'num_experts': 3, 'top_k': 1, 'weighting': 'straight_through', 'expert': {'type': 'Scaled', 'scale': 2.0}}


def test_in_place_of_a_convolution():
    layer = MoEConv2d(4, 6, 1, **MOE)
    assert all(isinstance(expert, Scaled) and expert.scale == 2 for expert in layer.expert_group.experts)
    nn.init.zeros_(layer.router.gate.fc.weight)
    nn.init.zeros_(layer.router.gate.fc.bias)
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(layer(x), layer.expert_group.experts[0](x))
    layer(x).sum().backward()


def test_in_a_block_an_ffn_and_a_stage():
    block = MoEBlock(4, **MOE)
    assert block(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)
    assert isinstance(block.moe.expert_group.experts[0], Scaled)
    ffn = MoEFFN(FFN(6, 12), 'ffn', **MOE)
    assert ffn(torch.randn(2, 5, 6)).shape == (2, 5, 6)
    assert isinstance(ffn.expert_group.experts[2], Scaled)
    with pytest.raises(MoEConfigError, match='shards are slices of the dense part'):
        MoEFFN(FFN(6, 12), 'ffn', placement='shards', expert={'type': 'Scaled'})
    net = MoEResNet(18, base_channels=8, moe=dict(MOE, stages=(1,)))  # stride 1
    net.init_weights()
    net.eval()
    assert [x.shape[1] for x in net(torch.randn(1, 3, 32, 32))] == [8, 16, 32, 64]


@pytest.mark.parametrize('placement', ['branch', 'tower', 'first', 'last'])
@pytest.mark.parametrize('gate', ['GAPLinearGate', 'AttentiveGate'])
def test_in_a_head(placement, gate):
    moe = dict(MOE, placement=placement, gate=dict(type=gate))
    built = head(moe)
    assert isinstance(built.branch_experts['cls'].experts[0], Scaled)
    losses = head_losses(built.train(), pyramid())
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert built.branch_experts['reg'].experts[0].linear.weight.grad is not None


def test_a_class_of_mmdet_or_the_class_itself():
    MODELS.register_module(name='OwnExpertOfATest', module=Scaled)
    try:
        for kind in ('OwnExpertOfATest', Scaled):
            layer = MoEConv2d(4, 4, 1, num_experts=2, top_k=1, expert=dict(type=kind))
            assert isinstance(layer.expert_group.experts[1], Scaled)
    finally:
        MODELS.module_dict.pop('OwnExpertOfATest')


@pytest.mark.parametrize(
    ('expert', 'message'),
    [
        ({'type': 'Scalled'}, r"MoEConv2d\(4, 4\)\.expert: unknown moe expert 'Scalled'.*Did you mean 'Scaled'"),
        ({'type': 'Scaled', 'scala': 1}, r"expert: Scaled: .*unexpected keyword argument 'scala'"),
        ('Scaled', r"expert: expected a dict with the key 'type'"),
    ],
)
def test_what_cannot_be_built_names_the_key(expert, message):
    with pytest.raises(MoEConfigError, match=message):
        MoEConv2d(4, 4, 1, num_experts=2, top_k=1, expert=expert)
