"""What MoEFFN computes, beside mmcv's FFN and a naive sum over tokens."""

from __future__ import annotations

import pytest
import torch
from small_ffn import KINDS, STRAIGHT, TOP2, ffn, layer, naive
from torch import nn
from torch.autograd import gradcheck

from moe_det.layers import MoEFFN
from moe_det.routing.experts import fold_common


@pytest.mark.parametrize('unit', ['token', 'image'])
@pytest.mark.parametrize('dispatch_mode', ['sorted', 'all'])
@pytest.mark.parametrize('kind', KINDS)
def test_it_is_the_sum_over_each_tokens_experts(kind, dispatch_mode, unit):
    moe = layer(**KINDS[kind], dispatch=dispatch_mode, unit=unit).train()
    x = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    output, expected = moe(x), naive(moe, x)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    experts = list(moe.expert_group.parameters())
    upstream = torch.randn_like(output)
    ours = torch.autograd.grad(output, [x, *experts], upstream, allow_unused=dispatch_mode == 'all')
    theirs = torch.autograd.grad(expected, [x, *experts], upstream, allow_unused=True)
    if moe.router.weighting == 'softmax':  # whose gate has a gradient of its own
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-10, atol=1e-10)
    for our, their in zip(ours[1:], theirs[1:], strict=True):
        their = torch.zeros_like(our) if their is None else their
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('unit', ['token', 'image'])
@pytest.mark.parametrize('kind', ['two of four', 'one of four'])
def test_gradcheck(kind, unit):
    moe = layer(ffn(embed_dims=3, feedforward_channels=4, act_cfg={'type': 'GELU'}), **KINDS[kind], unit=unit).train()
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: moe(x), (x, *moe.parameters()))


EXACT_KINDS = [kind for kind in KINDS if kind != 'one of four']  # whose weight is a probability below 1
OF_TWO_LAYERS = [{}, {'add_identity': False}, {'layer_scale_init_value': 0.3}, {'act_cfg': {'type': 'PReLU'}}]


@pytest.mark.parametrize(
    ('kind', 'settings'),
    [(kind, settings) for kind in EXACT_KINDS for settings in OF_TWO_LAYERS]
    + [(kind, {'num_fcs': 3}) for kind in EXACT_KINDS if 'shard' not in kind],
)
def test_copies_of_a_dense_ffn_compute_what_it_does(kind, settings):
    settings = {'act_cfg': {'type': 'GELU'}, **settings}  # DAB-DETR's has a parameter
    dense = ffn(**settings).double()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.normal_()
    moe = layer(ffn(**settings), **KINDS[kind], copy_noise=0.0)
    stored = {f'x.{key}': value for key, value in dense.state_dict().items()}
    missing, unexpected = nn.ModuleDict({'x': moe}).load_state_dict(stored, strict=False)
    assert not unexpected and all('.router.' in key for key in missing)
    x, identity = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    for given in ((x,), (x, identity)):
        torch.testing.assert_close(moe(*given), dense(*given), rtol=1e-11, atol=1e-11)
    fold_common(moe)
    torch.testing.assert_close(moe(x), dense(x), rtol=1e-11, atol=1e-11)


def test_dropout_and_stochastic_depth_act_as_in_the_dense_ffn():
    settings = {'dropout_layer': {'type': 'DropPath', 'drop_prob': 0.5}, 'feedforward_channels': 64}
    dense = ffn(**settings).double().train()
    moe = MoEFFN(dense, 'ffn', **STRAIGHT, copy_noise=0.0).double().train()
    nn.ModuleDict({'x': moe}).load_state_dict({f'x.{k}': v for k, v in dense.state_dict().items()}, strict=False)
    x = torch.randn(64, 3, 6, dtype=torch.float64)
    torch.manual_seed(5)
    expected = dense(x)
    torch.manual_seed(5)
    torch.testing.assert_close(moe(x), expected, rtol=1e-12, atol=1e-12)  # whole images are dropped, the same ones
    moe = MoEFFN(ffn(ffn_drop=0.5), 'ffn', **STRAIGHT).train()
    dropped = (moe(torch.zeros(40, 50, 6)) == 0).double().mean()  # the last dropout sees the mixture
    assert 0.45 < dropped < 0.55
    assert (moe.eval()(torch.zeros(40, 50, 6)) != 0).all()


def test_an_attentive_gate_sees_the_experts_of_every_token():
    settings = {**TOP2, 'gate': {'type': 'AttentiveGate', 'hidden_channels': 4}}
    for unit, shape in (('token', (6, 4, 6)), ('image', (2, 4, 6))):
        moe = MoEFFN(ffn(), 'ffn', **settings, unit=unit)
        seen = []
        moe.router.gate.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[1].shape))
        assert moe(torch.randn(2, 3, 6)).shape == (2, 3, 6)
        assert seen == [torch.Size(shape)]


def test_without_images_every_unit_gives_an_empty_output():
    for unit in ('token', 'image'):
        assert layer(**TOP2, unit=unit).eval()(torch.zeros(0, 5, 6, dtype=torch.float64)).shape == (0, 5, 6)


def test_a_nan_stays_with_its_token():
    moe = layer(**TOP2).eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    clean = moe(x)
    x[1, 3, 0] = float('nan')
    spoilt = moe(x)
    assert spoilt[1, 3].isnan().all()
    spoilt[1, 3] = clean[1, 3]
    torch.testing.assert_close(spoilt, clean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_decision_in_full_precision(dtype):
    moe = MoEFFN(ffn(), 'ffn', **TOP2, constraint={'type': 'KLConstraint'}).train()
    seen = []
    moe.router.decided.observe(lambda routing, layout: seen.append(routing))
    with torch.autocast('cpu', dtype=dtype):
        output = moe(torch.randn(2, 9, 6))
        losses = moe.router.collect()
    assert seen[0].logits.dtype == seen[0].log_weights.dtype == torch.float32
    (output.float().sum() + sum(losses.values())).backward()
    assert all(torch.isfinite(p.grad).all() for p in moe.parameters())


def test_swin_and_detr_give_other_shapes():
    moe = layer(**TOP2).eval()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(moe(x), moe(x.flatten(1, 2)).reshape(x.shape))
    torch.testing.assert_close(moe(x[:, 0, 0]), moe(x[:, :1, 0])[:, 0])
