"""Factorised experts against the sum over experts that they stand for, and in detectors and classifiers."""

from __future__ import annotations

import math

import pytest
import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.transformer import FFN
from small_models import batch, build, config, family, initialise, losses_of, mmdet_scope, predictions_of, shrink
from torch import Tensor, nn
from torch.autograd import gradcheck

from moe_det.converters.places import refuse_factors
from moe_det.errors import MoEConfigError
from moe_det.layers import MuConv2d, MuFFN, MuLinear
from moe_det.layers.multilinear import FACTORS, build_multilinear
from moe_det.routing import RoutingRecorder, entmax15, find_routers
from moe_det.routing.collection import attach_collection
from moe_det.routing.intervention import Intervention, intervene

RETINANET = 'retinanet/retinanet_r18_fpn_1x_coco.py'
DETR = 'detr/detr_r50_8xb2-150e_coco.py'


def spread_gate(layer: nn.Module) -> nn.Module:
    """Double precision, and a gate that tells rows apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = layer.router.gate.weight
        weight.copy_(torch.randn(weight.shape, generator=generator))
    return layer.double()


def conv_of(**mu) -> MuConv2d:
    torch.manual_seed(0)
    return spread_gate(MuConv2d(5, 7, 1, **{'num_experts': 6, 'rank': 3, **mu}))


def maps(images: int = 2) -> Tensor:
    return torch.randn(images, 5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_sum(experts: nn.Module, x: Tensor, coefficients: Tensor) -> Tensor:
    """sum_n a_n W_n [x; 1], expert by expert."""
    weights = experts.experts()
    if experts.bias:
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    return sum(coefficients[..., n, None] * (x @ weights[n]) for n in range(len(weights)))


# -- factors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('factors', FACTORS)
def test_factors_give_the_sum_over_experts(factors, bias):
    torch.manual_seed(0)
    experts = build_multilinear(factors, 6, 5, 7, bias, 3, 'x').double()
    x, mixing = torch.randn(11, 5).double(), torch.rand(11, 6).double()
    torch.testing.assert_close(experts(x, mixing), by_sum(experts, x, mixing))
    assert gradcheck(experts, (x[:2].requires_grad_(), mixing[:2].requires_grad_()))


def test_slices_of_both_factorisations_by_hand():
    cp = FACTORS['cp'](3, 4, 2, 5).double()
    tr = FACTORS['tr'](3, 4, 2, 5).double()
    for n in range(3):
        for i in range(5):
            for o in range(2):
                product = cp.of_experts[n] * cp.of_inputs[i] * cp.of_outputs[:, o]
                assert cp.experts()[n, i, o].item() == pytest.approx(product.sum().item())
                ring = tr.of_experts[n] @ tr.of_inputs[i] @ tr.of_outputs[:, :, o]
                assert tr.experts()[n, i, o].item() == pytest.approx(ring.trace().item())


def test_factors_start_as_published():
    torch.manual_seed(0)
    cp, tr = FACTORS['cp'](400, 100, 50, 25), FACTORS['tr'](400, 100, 50, 25)
    diagonal = tr.of_experts.diagonal(dim1=1, dim2=2)
    for drawn in (cp.of_experts, diagonal):
        assert drawn.mean().item() == pytest.approx(1, abs=0.1) and drawn.std().item() == pytest.approx(1, abs=0.1)
    assert tr.of_experts.abs().sum().item() == pytest.approx(diagonal.abs().sum().item())
    for drawn, bound in ((cp.of_inputs, 0.1), (tr.of_inputs, 0.1), (cp.of_outputs, 0.2), (tr.of_outputs, 0.1)):
        assert 0.95 * bound < drawn.abs().max() <= bound


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('factors', FACTORS)
def test_matched_ranks_have_the_parameters_of_the_layer(factors, bias):
    layer = MuConv2d(64, 48, 1, bias=bias, num_experts=16, factors=factors)
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (layer, nn.Conv2d(64, 48, 1, bias=bias)))
    per_rank = sum(p.numel() for p in layer.experts.parameters()) / layer.experts.rank
    assert 0 <= ours - theirs < per_rank + 1


def test_the_published_rank():
    # 256 to 256 channels with bias, 32 experts: ceil((65536 + 256 - 8192) / (256 + 1 + 256 + 32)) = ceil(105.7)
    assert MuConv2d(256, 256, 1, num_experts=32).experts.rank == 106


# -- layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('norm', ['layer', 'batch'])
@pytest.mark.parametrize('factors', FACTORS)
def test_a_convolution_is_the_sum_over_experts_at_every_location(factors, norm):
    layer = conv_of(factors=factors, gate=dict(type='NormalisedLinearGate', norm=norm)).train()
    x, output = maps(), layer(maps())
    logits = torch.einsum('bchw,nc->bhwn', x, layer.router.gate.weight)
    axes = (3,) if norm == 'layer' else (0, 1, 2)
    deviations = logits.var(axes, unbiased=False, keepdim=True) + 1e-5
    mixing = entmax15((logits - logits.mean(axes, keepdim=True)) / deviations.sqrt())
    assert (mixing == 0).any() and (mixing > 0).sum(3).min() >= 1
    expected = by_sum(layer.experts, x.permute(0, 2, 3, 1), mixing)
    torch.testing.assert_close(output, expected.permute(0, 3, 1, 2))


def test_gradients_of_a_convolution_are_numerical_ones():
    layer = conv_of()
    assert gradcheck(layer, (maps(1)[:, :, :2, :2].clone().requires_grad_(),), fast_mode=True)


def test_coefficients_are_equal_at_first():
    layer = MuConv2d(5, 7, 1, num_experts=6, rank=3).double()
    with RoutingRecorder(layer) as recorder:
        recorder.start_batch([0, 1])
        layer.eval()(maps())
    torch.testing.assert_close(recorder.records[0].weights, torch.full((24, 6), 1 / 6).double())
    layer.train()(maps()).square().sum().backward()
    assert layer.router.gate.weight.grad.abs().sum() > 0  # and yet the gate learns


def test_images_do_not_influence_each_other_unless_the_batch_is_normalised():
    x = maps()
    for norm, equal in (('layer', True), ('batch', False)):
        layer = conv_of(gate=dict(type='NormalisedLinearGate', norm=norm)).train()
        assert torch.allclose(layer(x)[:1], layer(x[:1]), rtol=1e-12, atol=1e-12) == equal


def test_batch_norm_of_a_single_row_and_of_none_is_that_of_evaluation():
    torch.manual_seed(0)
    layer = spread_gate(
        MuLinear(nn.Linear(5, 7), 'fc', num_experts=4, rank=2, gate=dict(type='NormalisedLinearGate', norm='batch'))
    )
    x = torch.randn(1, 5).double()
    assert torch.equal(layer.train()(x), layer.eval()(x)) and layer.train()(x[:0]).shape == (0, 7)


def test_a_stride_leaves_pixels_out():
    layer = conv_of(stride=2)
    whole = conv_of()
    torch.testing.assert_close(layer(maps()), whole(maps())[:, :, ::2, ::2])


def test_rows_are_locations_for_recorders_and_experts_can_be_forced():
    layer = conv_of().eval()
    model = nn.ModuleDict({'conv': layer})
    x = maps()
    with RoutingRecorder(model) as recorder:
        recorder.start_batch([7, 8])
        layer(x)
    (record,) = recorder.records
    assert record.weights.shape == (24, 6) and record.map_sizes == {0: (4, 3)}
    assert record.image_ids.tolist() == [7] * 12 + [8] * 12 and record.patches.tolist() == [*range(12)] * 2
    with intervene(model, {'conv': Intervention(forced=2)}):
        alone = layer(x)
    ones = torch.ones(2, 4, 3, 1, dtype=torch.float64)
    only = by_sum(layer.experts, x.permute(0, 2, 3, 1), torch.cat([ones * (n == 2) for n in range(6)], 3))
    torch.testing.assert_close(alone, only.permute(0, 3, 1, 2))


def test_an_ffn_uses_the_same_coefficients_in_all_its_layers():
    torch.manual_seed(0)
    dense = FFN(embed_dims=6, feedforward_channels=10, num_fcs=2, act_cfg=dict(type='GELU'))
    layer = spread_gate(MuFFN(dense, 'ffn', num_experts=4, rank=3)).eval()
    x = torch.randn(2, 5, 6).double()
    logits = x @ layer.router.gate.weight.t()
    mixing = entmax15(nn.functional.layer_norm(logits, (4,)))
    hidden = nn.functional.gelu(by_sum(layer.experts[0], x, mixing))
    torch.testing.assert_close(layer(x), x + by_sum(layer.experts[1], hidden, mixing))
    assert layer(x[:0]).shape == (0, 5, 6) and layer(x[:, :0]).shape == (2, 0, 6)
    first, second = MuFFN(dense, 'ffn', num_experts=4).experts
    assert first.rank == math.ceil((7 * 10 - 24) / (7 + 10 + 4)) and second.rank == math.ceil(11 * 6 / (11 + 6 + 4))


# -- models -----------------------------------------------------------------------------------------------------


def with_mu(name: str, experts: dict) -> nn.Module:
    cfg = family(name).model
    return build({**cfg, 'type': 'WithExperts', 'detector': cfg['type'], 'experts': experts})


@pytest.mark.parametrize(
    ('name', 'entry', 'layers'),
    [
        (RETINANET, dict(modules='neck.lateral_convs.*', type='MuConv2d', num_experts=4), 3),
        (DETR, dict(modules='decoder.layers.*.ffn', type='MuFFN', num_experts=4), 2),
    ],
)
def test_a_detector_trains_and_predicts(name, entry, layers):
    model = initialise(with_mu(name, {**entry, 'constraint': dict(type='KLConstraint')}))
    routers = find_routers(model)
    assert len(routers) == layers and list(routers) == [router.label for router in routers.values()]
    attach_collection(model)
    losses = losses_of(model, batch())
    sum(loss for key, loss in losses.items() if 'loss' in key).backward()
    assert losses['loss_moe_kl'].requires_grad
    for router in routers.values():
        assert torch.isfinite(router.gate.weight.grad).all() and router.gate.weight.grad.abs().sum() > 0
    for found in predictions_of(model, batch()):
        assert len(found) > 0 and torch.isfinite(found.bboxes).all()


def test_the_conv_cfg_slot_takes_it():
    with mmdet_scope():
        module = initialise(ConvModule(6, 8, 1, conv_cfg=dict(type='MuConv2d', num_experts=4, rank=2)))
    assert isinstance(module.conv, MuConv2d) and module(torch.randn(1, 6, 3, 3)).shape == (1, 8, 3, 3)
    cfg = shrink(config("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'")).model
    cfg.neck.conv_cfg = dict(type='MuConv2d', num_experts=4)
    with pytest.raises(MoEConfigError, match=r'MuConv2d\(16, 16\)\.kernel_size=\(3, 3\): .*WithExperts'):
        build(cfg)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: MuConv2d(8, 8, 1, padding=1), r'MuConv2d\(8, 8\)\.padding=\(1, 1\)'),
        (lambda: MuConv2d(8, 8, 1, groups=2), r'groups=2'),
        (lambda: MuConv2d(8, 8, 1, top_k=2), "unknown key 'top_k'"),
        (lambda: MuConv2d(8, 8, 1, num_experts=1), 'num_experts=1: expected an integer >= 2'),
        (lambda: MuConv2d(8, 8, 1, num_experts=9), r'MuConv2d\(8, 8\).num_experts=9: the gate of so many experts'),
        (lambda: MuConv2d(8, 8, 1, num_experts=4, rank=0), 'rank=0: expected an integer >= 1'),
        (lambda: MuConv2d(8, 8, 1, num_experts=4, factors='tucker'), r"factors: .*'tucker'.*cp, tr"),
        (lambda: conv_of(gate=dict(type='NormalisedLinearGate', norm='group')), "norm='group': expected 'layer'"),
        (lambda: conv_of(gate=dict(type='AttentiveGate')), 'needs the features of experts'),
        (
            lambda: with_mu(RETINANET, dict(modules='bbox_head.cls_convs.*', type='MuConv2d')),
            'names ConvModule, and MuConv2d takes 1x1 convolutions',
        ),
        (lambda: with_mu(RETINANET, dict(modules='**.fc', type='MuLinear')), 'no last linear layers'),
    ],
)
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(MoEConfigError, match=message):
        make()


def test_no_expert_can_be_taken_out():
    with pytest.raises(MoEConfigError, match='mine.py: neck.lateral_convs.0.conv.experts are factorised experts'):
        refuse_factors(
            with_mu(RETINANET, dict(modules='neck.lateral_convs.*', type='MuConv2d', num_experts=4)), 'mine.py'
        )
