"""MoEBlock in the plugin slot of a ResNet."""

from __future__ import annotations

import pytest
import torch
from mmdet.models import ResNet
from torch import nn

from moe_det.layers import MoEBlock


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'norm_cfg': {'type': 'GN', 'num_groups': 2}},
        {'shared_expert': True, 'unit': 'patch', 'grid': 2},
        {'num_experts': 1, 'top_k': 1},
        {'copies_share': True},
        {'dispatch': 'all', 'top_k': 1, 'reduction': 2},
    ],
    ids=str,
)
def test_it_is_the_identity_at_first(settings, training):
    block = MoEBlock(16, **settings).train(training)
    x = torch.randn(3, 16, 6, 5)
    assert torch.equal(block(x), x)
    block.init_weights()
    assert torch.equal(block(x), x)


def test_it_adds_the_weighted_experts():
    block = MoEBlock(8, num_experts=3, top_k=2).double().eval()
    for expert in block.moe.expert_group.experts:
        nn.init.normal_(expert[-1].weight)
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64)
    expected = []
    for image in x:
        logits = block.moe.router.gate(image[None])[0]
        kept = logits.sort(descending=True).indices[:2]
        weights = torch.softmax(logits[kept], 0)
        experts = block.moe.expert_group.experts
        expected.append(image + sum(w * experts[e](image[None])[0] for w, e in zip(weights, kept, strict=True)))
    torch.testing.assert_close(block(x), torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_experts_are_narrow_bottlenecks():
    block = MoEBlock(16, reduction=4)
    convs = [m for m in block.moe.expert_group.experts[0] if isinstance(m, nn.Conv2d)]
    assert [conv.weight.shape for conv in convs] == [(4, 16, 1, 1), (4, 4, 3, 3), (16, 4, 1, 1)]
    assert MoEBlock(2, reduction=4).moe.expert_group.experts[0][0].out_channels == 1  # never 0


def test_experts_learn_although_they_start_at_zero():
    block = MoEBlock(8, num_experts=2, top_k=2, soft_mixture=True).train()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    x = torch.randn(6, 8, 5, 5)
    for _ in range(3):
        optimizer.zero_grad()
        (block(x) - 2 * x).square().mean().backward()
        optimizer.step()
    for expert in block.moe.expert_group.experts:
        assert (expert[-1].weight != 0).any()
        assert (expert[0].weight.grad != 0).any()
    assert not torch.equal(block(x), x)


def test_initialising_again_keeps_what_copies_share():
    block = MoEBlock(8, num_experts=3, top_k=1, copies_share=True)
    for _ in range(2):
        weights = block.moe.expert_group.weights_of(1)
        assert (weights['1.weight'] == 1).all() and (weights['4.weight'] == 1).all() and not weights['7.weight'].any()
        assert block.moe.expert_group.common[0][0].weight.any()
        assert weights['3.weight'].std().item() == pytest.approx((2 / (9 * 2)) ** 0.5, rel=0.5)  # kaiming_init
        block.init_weights()


def test_a_resnet_computes_what_it_did_without_the_block():
    settings = {'depth': 50, 'base_channels': 4, 'stem_channels': 4, 'num_stages': 2, 'strides': (1, 2)}
    settings |= {'dilations': (1, 1), 'out_indices': (1,)}
    plugin = {
        'cfg': {'type': 'MoEBlock', 'num_experts': 3, 'top_k': 1},
        'stages': (False, True),
        'position': 'after_conv3',
    }
    plain = ResNet(**settings)
    backbone = ResNet(**settings, plugins=[plugin])
    backbone.init_weights()  # its own init_cfg sets every norm to 1; the block must have the last word
    blocks = [m for m in backbone.modules() if isinstance(m, MoEBlock)]
    assert len(blocks) == 4
    missing = plain.load_state_dict(backbone.state_dict(), strict=False)
    assert missing.missing_keys == []
    x = torch.randn(2, 3, 32, 32)
    for module in (plain, backbone):
        module.eval()
    torch.testing.assert_close(backbone(x)[0], plain(x)[0])
    assert backbone(x)[0].abs().max() > 0
