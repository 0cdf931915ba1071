"""A plain convolution's checkpoint fills the experts of MoEConv2d."""

from __future__ import annotations

import logging

import pytest
import torch
from small_models import log_lines
from torch import nn

from moe_det.layers import MoEConv2d


def test_experts_are_copies_with_the_stated_noise():
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 8, 3, padding=1)
    layer = MoEConv2d(6, 8, 3, padding=1, num_experts=3, top_k=2, copy_noise=0.1)
    with log_lines() as lines:
        missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and missing and all(key.startswith('router.') for key in missing)
    assert [line.levelno for line in lines] == [logging.INFO]
    assert '2 of 2 dense tensors copied into 3 experts' in lines[0].getMessage()
    copies = [expert.weight.detach() for expert in layer.expert_group.experts]
    for copy in copies:  # of 432 values the deviation is known to 3.4 %
        assert (copy - plain.weight).std().item() == pytest.approx(0.1 * plain.weight.std().item(), rel=0.14)
    assert not torch.equal(copies[0], copies[1])


def test_without_noise_the_output_is_the_plain_one():
    plain = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    layer = MoEConv2d(4, 4, 3, padding=1, bias=False, num_experts=4, top_k=2, copy_noise=0).eval()
    layer.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-5)


def test_other_shapes_are_reported_and_left_alone():
    layer = MoEConv2d(4, 4, 3, num_experts=2, top_k=1)
    before = layer.expert_group.experts[0].weight.clone()
    with log_lines() as lines:
        layer.load_state_dict(nn.Conv2d(4, 4, 5).state_dict(), strict=False)
    assert lines[0].levelno == logging.WARNING
    assert 'not copied: weight: shape (4, 4, 5, 5), an expert has (4, 4, 3, 3)' in lines[0].getMessage()
    assert torch.equal(layer.expert_group.experts[0].weight, before)


def test_an_own_checkpoint_is_loaded_as_it_is():
    layers = [MoEConv2d(4, 4, 3, num_experts=2, top_k=1) for _ in range(2)]
    with log_lines() as lines:
        layers[1].load_state_dict(layers[0].state_dict(), strict=True)
    assert not lines
    for one, other in zip(layers[1].state_dict().values(), layers[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)
