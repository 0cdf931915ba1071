"""Layers whose experts are copies of a plain convolution: equal at the start, with a common part, partly redrawn."""

from __future__ import annotations

import pytest
import torch
from small_models import log_lines
from torch import nn

from moe_det.errors import MoEConfigError
from moe_det.layers import MoEBlock, MoEConv2d, MoESettings
from moe_det.routing import ExpertGroup


def conv(**moe) -> MoEConv2d:
    return MoEConv2d(6, 8, 3, padding=1, **{'num_experts': 3, 'top_k': 1, **moe})


@pytest.mark.parametrize('share', [False, True])
@pytest.mark.parametrize('dispatch', ['sorted', 'all'])
def test_one_straight_through_copy_computes_what_the_plain_convolution_does(share, dispatch):
    plain = nn.Conv2d(6, 8, 3, padding=1)
    layer = conv(weighting='straight_through', copies_share=share, copy_noise=0, dispatch=dispatch)
    with log_lines() as lines:
        missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(key.startswith('router.') for key in missing)
    assert '2 of 2 dense tensors copied into 3 experts' in lines[0].getMessage()
    x = torch.randn(5, 6, 4, 4)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-5)
    layer(x).square().sum().backward()
    assert layer.router.gate.fc.weight.grad.any()


def test_all_rows_teach_the_common_part():
    layer = conv(copies_share=True, copy_noise=0, weighting='straight_through').train()
    plain = nn.Conv2d(6, 8, 3, padding=1)
    layer.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(5, 6, 4, 4)
    for module in (plain, layer):
        module(x).square().sum().backward()
    (common,) = layer.expert_group.common
    torch.testing.assert_close(common.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)


def test_a_resumed_model_with_a_common_part_is_the_same():
    layers = [conv(copies_share=True) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict(), strict=True)
    for one, other in zip(layers[1].state_dict().values(), layers[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_from_scratch_weights_have_the_size_of_plain_ones():
    torch.manual_seed(0)
    layer = MoEConv2d(64, 64, 3, num_experts=4, top_k=1, copies_share=True, copy_noise=0.1)
    expected = (2 / (9 * 64)) ** 0.5 * (1 + 0.1**2) ** 0.5  # kaiming, fan-out, and the noise
    for expert in range(4):
        weight = layer.expert_group.weights_of(expert)['weight']
        assert weight.std().item() == pytest.approx(expected, rel=0.02)
    difference = layer.expert_group.experts[1].weight
    assert difference.std().item() == pytest.approx(0.1 * (2 / (9 * 64)) ** 0.5, rel=0.02)


def test_redrawn_channels_come_from_the_config():
    plain, layer = nn.Conv2d(6, 8, 3, padding=1), conv(copy_noise=0, copy_redraw=0.25)
    layer.load_state_dict(plain.state_dict(), strict=False)
    for expert in layer.expert_group.experts:
        assert (expert.weight != plain.weight).flatten(1).any(1).sum() == 2  # a quarter of 8 channels


@pytest.mark.parametrize(('slots', 'weighting'), [(None, 'softmax'), (1, 'straight_through'), (2, 'straight_through')])
def test_slots_are_chosen_straight_through(slots, weighting):
    settings = MoESettings(num_experts=6, top_k=slots or 1)
    router = settings.build_router(4, 'moe', slots=slots)
    assert (router.slots, router.copies, router.weighting) == (slots or 1, 6 // (slots or 1), weighting)


def test_slots_of_one_expert_need_no_router():
    settings = MoESettings(num_experts=3, top_k=3)
    assert settings.build_router(4, 'moe', slots=3) is None


def test_a_group_of_another_class_gets_what_the_settings_say():
    class Group(ExpertGroup):
        """Told apart by its class."""

    settings = MoESettings(num_experts=4, top_k=2, copies_share=True, copy_noise=0.5, dispatch='all')
    group = settings.build_experts(lambda: nn.Conv2d(2, 2, 1), slots=2, group=Group)
    assert type(group) is Group
    assert (group.slots, group.copies, group.copy_noise, group.dispatch, len(group.common)) == (2, 2, 0.5, 'all', 2)


@pytest.mark.parametrize('build', [conv, lambda **moe: MoEBlock(8, **moe)])
def test_one_expert_has_nobody_to_share_with(build):
    with pytest.raises(MoEConfigError, match='copies_share=True: num_experts=1'):
        build(num_experts=1, top_k=1, copies_share=True)
