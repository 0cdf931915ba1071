"""WithExperts laid over detectors of mmdet: what is built, what checkpoints do, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.runner.checkpoint import load_checkpoint
from small_models import (
    assert_same_detections,
    batch,
    build,
    family,
    initialise,
    log_lines,
    losses_of,
    predictions_of,
    spread_weights,
    with_experts,
)
from torch import nn

from moe_det.common.dense_counterpart import dense_counterpart
from moe_det.detectors.patterns import grouped, path_matches
from moe_det.detectors.with_experts import put_experts
from moe_det.errors import MoEConfigError
from moe_det.layers import MoEBlock, MoEConv2d, MoEFFN
from moe_det.routing.collection import attach_collection
from moe_det.routing.router import find_routers

DETR = 'detr/detr_r50_8xb2-150e_coco.py'
RETINANET = 'retinanet/retinanet_r18_fpn_1x_coco.py'
FFNS = {'modules': 'decoder.layers.*.ffn', 'type': 'MoEFFN', 'num_experts': 3, 'top_k': 1}
TOWER = {'modules': 'bbox_head.cls_convs.*', 'type': 'MoEConv2d', 'num_experts': 3, 'top_k': 2, 'copy_noise': 0.0}


def built(experts: object, name: str = DETR, **changes) -> nn.Module:
    """The small detector with experts."""
    return build({**with_experts(family(name).model, experts), **changes})


def test_the_detector_itself_is_built_and_trains():
    model = initialise(built([{**FFNS, 'constraint': {'type': 'KLConstraint'}}]))
    assert type(model).__name__ == 'DETR'
    assert list(find_routers(model)) == ['decoder.layers.0.ffn', 'decoder.layers.1.ffn']
    attach_collection(model)
    losses = losses_of(model, batch())
    assert losses['loss_moe_kl'] > 0
    sum(loss for key, loss in losses.items() if 'loss' in key).backward()
    for layer in model.decoder.layers:
        assert isinstance(layer.ffn, MoEFFN)
        assert layer.ffn.router.gate.fc.weight.grad.abs().sum() > 0
        grads = [expert.layers[0][0].weight.grad for expert in layer.ffn.expert_group.experts]
        assert any(grad.abs().sum() > 0 for grad in grads) and all(grad is not None for grad in grads)
    assert len(predictions_of(model, batch())[0]) == 10


@pytest.mark.parametrize(
    ('name', 'experts'),
    [
        (DETR, {**FFNS, 'weighting': 'straight_through', 'copy_noise': 0.0}),
        (DETR, {'modules': '**.ffn', 'type': 'MoEFFN', 'placement': 'shards', 'copy_noise': 0.0}),
        (RETINANET, TOWER),
        (RETINANET, {'modules': 'backbone.layer4', 'type': 'MoEBlock'}),
        (RETINANET, {**TOWER, 'modules': ['backbone.layer3.*.conv2', 'neck.fpn_convs.*']}),
    ],
    ids=['copies of FFNs', 'shards of FFNs', 'tower', 'block after a stage', 'two patterns'],
)
def test_a_dense_checkpoint_fills_the_experts_and_nothing_changes(tmp_path, name, experts):
    dense = spread_weights(build(family(name).model))  # scores differ
    torch.save({'state_dict': dense.state_dict()}, tmp_path / 'dense.pth')
    model = initialise(built(experts, name))
    load_checkpoint(model, str(tmp_path / 'dense.pth'), map_location='cpu')
    missing, unexpected = built(experts, name).load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected
    assert all('.router.' in key or '.moe_block.' in key for key in missing)
    ours, theirs = predictions_of(model, batch()), predictions_of(dense, batch())
    for our, their in zip(ours, theirs, strict=True):
        assert_same_detections(our, their)


def test_what_was_copied_is_said():
    dense = build(family(DETR).model)
    model = built(FFNS)
    with log_lines() as lines:
        model.load_state_dict(dense.state_dict(), strict=False)
    words = '4 of 4 dense tensors copied into 3 experts with relative noise 0.02'
    assert [line.getMessage() for line in lines] == [f'decoder.layers.{i}.ffn: {words}' for i in range(2)]


def test_its_own_checkpoint_and_a_copy_compute_the_same():
    model = initialise(built(FFNS))
    other = built(FFNS)
    other.load_state_dict(model.state_dict())
    expected = predictions_of(model, batch())[0]
    for again in (other, copy.deepcopy(model)):
        assert torch.equal(predictions_of(again, batch())[0].bboxes, expected.bboxes)


def test_the_dense_counterpart_is_the_detector():
    plain, changes = dense_counterpart(with_experts(family(DETR).model, [FFNS]))
    assert changes == ['model: DETR without experts']
    assert plain == family(DETR).model


class SharedConvs(nn.Module):
    """A head whose levels share a convolution, under two paths."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(4, 4, 3, padding=1)
        self.levels = nn.ModuleList([nn.Sequential(conv, nn.ReLU(inplace=True)) for _ in range(3)])
        self.out = nn.Conv2d(4, 2, 1)


def test_what_several_places_share_is_replaced_in_all_of_them():
    model = SharedConvs()
    put_experts(model, [{'modules': 'levels.*.0', 'type': 'MoEConv2d', 'num_levels': 3}])
    assert isinstance(model.levels[0][0], MoEConv2d)
    assert model.levels[0][0] is model.levels[1][0] is model.levels[2][0]
    assert type(model.out) is nn.Conv2d


def test_a_block_follows_a_stage_of_any_backbone():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)))
    put_experts(model, [{'modules': '0', 'type': 'MoEBlock', 'in_channels': 4, 'reduction': 2}])
    block = model[0].moe_block
    assert isinstance(block, MoEBlock)
    nn.init.ones_(block.moe.expert_group.experts[0][-1].weight)
    x = torch.randn(2, 3, 5, 5)
    model.eval()
    torch.testing.assert_close(model(x), block(model[0][0](x)))


class OwnBlock(nn.Module):
    """A residual block that does not tell its channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_a_block_that_is_no_sequence_passes_its_output_on():
    model = nn.ModuleDict({'block': OwnBlock()})
    put_experts(model, [{'modules': 'block', 'type': 'MoEBlock', 'in_channels': 4}])
    twin = copy.deepcopy(model).eval()
    nn.init.ones_(twin['block'].moe_block.moe.expert_group.experts[1][-1].weight)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(twin['block'](x), twin['block'].moe_block(2 * x))
    assert torch.equal(model.eval()['block'](x), 2 * x)  # starts without effect


@pytest.mark.parametrize(
    ('path', 'pattern', 'fits'),
    [
        ('decoder.layers.0.ffn', 'decoder.layers.*.ffn', True),
        ('decoder.layers.0.ffn', 'decoder.*.ffn', False),
        ('decoder.layers.0.ffn', '**.ffn', True),
        ('ffn', '**.ffn', True),
        ('decoder.layers.10.ffn', 'decoder.layers.1?.ffn', True),
        ('decoder.layers.0.ffn.layers', '**.ffn', False),
        ('decoder.layers.0.ffn.layers', 'decoder.**', True),
        ('bbox_head.cls_convs.1.conv', 'bbox_head.[cr]*_convs.*.conv', True),
    ],
)
def test_patterns(path, pattern, fits):
    assert path_matches(path, pattern) is fits


def test_paths_are_grouped_by_their_numbers():
    assert grouped(['a.0.b1', 'a.11.b1', 'a.b2', 'conv1']) == {'a.*.b1': 2, 'a.b2': 1, 'conv1': 1}


NEAREST = "FFNs of this detector, the nearest first: 'decoder.layers.*.ffn' (2), 'encoder.layers.*.ffn' (2)"
TWICE = 'experts.1.modules: decoder.layers.0.ffn has its experts from model.experts.0'
SYNC = {**FFNS, 'modules': 'backbone.layer4.*', 'type': 'MoEBlock', 'norm_cfg': {'type': 'SyncBN'}}
REFUSED = [
    ({**FFNS, 'modules': 'decoder.layer.*.ffn'}, f'no module has such a path; {NEAREST}'),
    ({**FFNS, 'modules': 'decoder.layers.*'}, f'names DetrTransformerDecoderLayer, and MoEFFN takes FFNs; {NEAREST}'),
    ({**FFNS, 'type': 'MoEFfn'}, "experts.0.type: unknown type 'MoEFfn'"),
    ({**FFNS, 'num_expert': 2}, "decoder.layers.0.ffn: unknown key 'num_expert'"),
    ({'type': 'MoEFFN'}, "expected a dict with 'modules' and 'type'"),
    ({**FFNS, 'modules': 3}, 'modules=3: expected a pattern of module paths'),
    ([FFNS, {**FFNS, 'modules': '**.ffn'}], TWICE),
    ([], 'model.experts=[]: expected a list of dicts'),
    (SYNC, "backbone.layer4.0: MoEBlock(256): norm_cfg type 'SyncBN' cannot be used inside experts"),
    ({**FFNS, 'num_levels': 5}, "decoder.layers.0.ffn: unknown key 'num_levels'"),
    ({**FFNS, 'expert': {'type': 'Swiss'}}, "decoder.layers.0.ffn.expert: unknown moe expert 'Swiss'"),
    ({'modules': '**', 'type': 'MoELinear'}, 'this detector has no linear layers of box heads that can be replaced'),
]


@pytest.mark.parametrize(('experts', 'message'), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_cannot_be_built_is_one_message(experts, message):
    with pytest.raises(MoEConfigError) as error:
        built(experts)
    assert message in str(error.value)


def test_a_neck_that_gives_several_maps_is_no_block():
    with pytest.raises(MoEConfigError) as error:
        built({'modules': 'neck', 'type': 'MoEBlock'}, RETINANET)
    message = str(error.value)
    assert 'names FPN, and MoEBlock takes stages and blocks' in message and "'backbone.layer4' (1)" in message


def test_a_detector_without_the_kind_is_told_what_it_has():
    with pytest.raises(
        MoEConfigError, match=r'this detector has no FFNs that can be replaced, but convolutions \(MoEC'
    ):
        built(FFNS, RETINANET)


LEVELS = {**TOWER, 'balance_over': 'level', 'constraint': {'type': 'KLConstraint'}}


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({}, r"^bbox_head\.cls_convs\.0\.conv: MoEConv2d\(32, 32\)\.balance_over='level': the layer sees one level"),
        ({'num_levels': '5'}, r"^bbox_head\.cls_convs\.0\.conv: .*num_levels='5': expected an integer >= 1"),
        ({'num_levels': 3}, r'^bbox_head\.cls_convs\.0\.conv: num_levels=3, but a step brings 5\.'),
        ({'num_levels': 10}, r'^bbox_head\.cls_convs\.0\.conv: num_levels=10, but a step brings 5\.'),
    ],
    ids=str,
)
def test_a_wrong_number_of_levels_names_the_convolution(given, message):
    with pytest.raises(MoEConfigError, match=message):
        model = initialise(built({**LEVELS, **given}, RETINANET))
        attach_collection(model)
        losses_of(model, batch())


@pytest.mark.parametrize('queries', [0, 4])
def test_fewer_queries_than_experts_train(queries):
    moe = {**FFNS, 'num_experts': 16, 'constraint': {'type': 'KLConstraint'}}
    model = initialise(built([moe], num_queries=queries))
    attach_collection(model)
    losses = losses_of(model, batch(counts=[queries // 4] * 2))
    total = sum(loss for key, loss in losses.items() if 'loss' in key)
    assert torch.isfinite(total)
    total.backward()
    grads = [parameter.grad for parameter in model.decoder.layers[0].ffn.parameters()]
    assert all(grad is None or torch.isfinite(grad).all() for grad in grads)
    if queries:
        assert all(grad is not None for grad in grads)


def test_an_unknown_detector_lists_those_that_exist():
    with pytest.raises(MoEConfigError, match=r"unknown detector 'DINOO'.*Did you mean 'DINO'"):
        built([FFNS], detector='DINOO')


def test_another_head_under_the_name_of_retinas_is_told_where_its_slots_are():
    cfg = family('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py').model
    cfg.bbox_head.update(type='MoERetinaHead', moe={'num_experts': 2, 'top_k': 1})
    with pytest.raises(MoEConfigError, match=r'bbox_head\.\w+: is not a key of RetinaHead.*WithExperts.*cls_convs'):
        build(cfg)
