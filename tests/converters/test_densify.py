"""One expert of a mixture, or their average, as a checkpoint that stock mmdet loads."""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from small_files import assert_same_outputs, model_of, outputs_of, write_checkpoint, write_config
from small_models import RETINANET, assert_same_detections, batch, blocks_after, build, config, predictions_of, shrink

from moe_det.converters.densify import chosen_experts, densify
from moe_det.converters.places import expert_places
from moe_det.converters.upcycle import upcycle
from moe_det.errors import CheckpointError, MoEConfigError
from moe_det.routing.intervention import Intervention, intervene

EXPERTS = dict(num_experts=3, top_k=2, constraint=dict(type='KLConstraint'))
SHARDS = dict(placement='shards', shards=2, copies=3)
GROUPS = dict(bbox_head=dict(norm_cfg=dict(type='GN', num_groups=4)))


def stock_detector(checkpoint, depth: int = 18) -> torch.nn.Module:
    """mmdet's own RetinaNet, made small; a missing or unexpected key is an error."""
    cfg = config(f"_base_ = '{RETINANET}'")
    cfg.model.backbone.depth = depth
    shrink(cfg, base_channels=4, channels=8)
    cfg.model.bbox_head.stacked_convs = 2
    model = build(cfg.model)
    assert not any('moe_det' in type(module).__module__ for module in model.modules())
    load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True)
    return model.eval()


@pytest.mark.parametrize(
    'moe, expert, forced',
    [
        (EXPERTS, ['cls=2', 'reg=1'], dict(cls=2, reg=1)),
        (dict(EXPERTS, placement='last', shared_gate=True), ['2'], dict(both=2)),
        (dict(EXPERTS, placement='tower', branches='cls'), ['bbox_head.cls=1'], dict(cls=1)),
    ],
    ids=['branch', 'last, one gate', 'tower of a branch'],
)
def test_one_expert_predicts_what_it_does_when_it_is_forced(moe, expert, forced, tmp_path):
    path = write_config(tmp_path / 'moe.py', moe)
    checkpoint = write_checkpoint(path, tmp_path / 'moe.pth')
    densify(str(path), str(checkpoint), str(tmp_path / 'out.pth'), expert=expert)
    plain, mixture = stock_detector(tmp_path / 'out.pth'), model_of(path, checkpoint)
    own = outputs_of(mixture)
    data = batch()
    with intervene(mixture, {f'bbox_head.{layer}': Intervention(forced=e) for layer, e in forced.items()}):
        assert_same_outputs(plain, mixture)
        for one, other in zip(predictions_of(plain, data), predictions_of(mixture, data), strict=True):
            assert_same_detections(one, other)
    # the mixture itself predicts something else
    assert max((a - b).abs().max().item() for a, b in zip(outputs_of(plain), own, strict=True)) > 0.01


def test_experts_of_the_backbone(tmp_path):
    changes = dict(
        depth=50,
        backbone=dict(type='MoEResNet', moe=dict(stages=(3,), convs=('stem',), **EXPERTS)),
        bbox_head=dict(conv_cfg=dict(type='MoEConv2d', num_levels=5, **EXPERTS)),
    )
    path = write_config(tmp_path / 'moe.py', **changes)
    checkpoint = write_checkpoint(path, tmp_path / 'moe.pth')
    densify(str(path), str(checkpoint), str(tmp_path / 'out.pth'), expert=['1', 'backbone.layer3=2'])
    mixture = model_of(path, checkpoint)
    layers = {'backbone.conv1': 1, 'backbone.layer3': 2}
    layers |= {f'bbox_head.{branch}_convs.{i}.conv': 1 for branch in ('cls', 'reg') for i in (0, 1)}
    with intervene(mixture, {layer: Intervention(forced=e) for layer, e in layers.items()}):
        assert_same_outputs(stock_detector(tmp_path / 'out.pth', depth=50), mixture)


def test_average_is_the_mean_of_the_weights(tmp_path, capsys):
    path = write_config(tmp_path / 'moe.py', EXPERTS)
    checkpoint = write_checkpoint(path, tmp_path / 'moe.pth')
    densify(str(path), str(checkpoint), str(tmp_path / 'out.pth'), average=True)
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    name = 'bbox_head.branch_experts.reg.experts.{}.predictor.weight'
    mean = sum(state[name.format(e)].double() for e in range(3)) / 3
    found = stock_detector(tmp_path / 'out.pth').bbox_head.retina_reg.weight
    torch.testing.assert_close(found.double(), mean, rtol=0, atol=1e-7)
    assert 'bbox_head.reg: mean of 3 experts, 6 tensors' in capsys.readouterr().out


def test_the_config_in_the_file_needs_no_moe_det(tmp_path):
    path = write_config(tmp_path / 'experts.py', EXPERTS)
    densify(str(path), str(write_checkpoint(path, tmp_path / 'in.pth')), str(tmp_path / 'out.pth'), expert=['0'])
    content = torch.load(tmp_path / 'out.pth', weights_only=True)
    assert 'moe' not in content['meta']['cfg'].lower()
    load_checkpoint(
        build(Config.fromstring(content['meta']['cfg'], '.py').model), str(tmp_path / 'out.pth'), strict=True
    )
    assert content['meta']['dataset_meta'] == dict(classes=('a', 'b', 'c'))


@pytest.mark.parametrize(
    'moe, changes, message',
    [
        (
            dict(EXPERTS, width=0.5),
            {},
            r'bbox_head\.cls: an expert has another width than the dense part: convs\.0\.conv\.weight has shape '
            r'\(4, 8, 3, 3\), bbox_head\.cls_convs\.0\.conv\.weight of the plain model shape \(8, 8, 3, 3\)',
        ),
        (dict(EXPERTS, shared_expert=True), {}, r'bbox_head\.cls: a shared expert adds'),
        (
            None,
            dict(backbone=dict(type='MoEResNet', moe=dict(stages=(4,), residual=True, **EXPERTS))),
            'layer4: residual=True adds a skip',
        ),
        (
            None,
            dict(depth=50, backbone=dict(plugins=[blocks_after(4, **EXPERTS)])),
            'layer4.0.moe_block.moe: its experts are blocks that were added',
        ),
    ],
    ids=['width', 'shared', 'skip', 'block'],
)
def test_experts_that_cannot_stand_alone_are_refused(moe, changes, message, tmp_path):
    path = write_config(tmp_path / 'moe.py', moe, **changes)
    checkpoint = write_checkpoint(path, tmp_path / 'moe.pth')
    with pytest.raises(CheckpointError, match=message):
        densify(str(path), str(checkpoint), str(tmp_path / 'out.pth'), expert=['0'])
    assert not (tmp_path / 'out.pth').exists()


def test_wrong_choices(tmp_path):
    places = expert_places(model_of(write_config(tmp_path / 'moe.py', EXPERTS)))
    for expert, average, message in [
        (None, False, r'^bbox_head\.cls, bbox_head\.reg: several experts; choose with --expert N'),
        (['cls=1'], False, r'^bbox_head\.reg: several experts'),
        (['3'], False, r'--expert 3: bbox_head\.cls has the experts 0 to 2'),
        (['clss=1'], False, r"unknown layer 'clss'; the names that exist are: bbox_head.cls, bbox_head.reg"),
        (['cls=x'], False, r'--expert cls=x: expected a number, or LAYER=NUMBER'),
    ]:
        with pytest.raises(MoEConfigError, match=message):
            chosen_experts(places, expert, average)
    for choice in (dict(expert=['1'], average=True), dict(average=True, most_used=True)):
        with pytest.raises(MoEConfigError, match='--expert, --average and --most-used: give one of them'):
            densify(str(tmp_path / 'moe.py'), 'absent.pth', str(tmp_path / 'out.pth'), **choice)
    assert chosen_experts(places, ['2', 'reg=0'], False) == {'bbox_head.cls': (2,), 'bbox_head.reg': (0,)}
    shards = expert_places(model_of(write_config(tmp_path / 'shards.py', SHARDS)))
    assert chosen_experts(shards, ['2', 'reg=0'], False) == {'bbox_head.cls': (2, 5), 'bbox_head.reg': (0, 3)}
    with pytest.raises(MoEConfigError, match=r'bbox_head\.cls has the copies of each shard 0 to 2'):
        chosen_experts(shards, ['3'], False)


def test_top_1_says_that_the_scale_is_another(tmp_path, capsys):
    path = write_config(tmp_path / 'moe.py', dict(EXPERTS, top_k=1))
    densify(str(path), str(write_checkpoint(path, tmp_path / 'moe.pth')), str(tmp_path / 'out.pth'), expert=['0'])
    assert 'with top_k=1 an expert was trained with its output scaled' in capsys.readouterr().err
    stock_detector(tmp_path / 'out.pth')


@pytest.mark.parametrize(
    'moe, changes, forced',
    [
        (SHARDS, GROUPS, dict(cls=(2, 5), reg=(1, 4))),
        (dict(SHARDS, shards=4, unit='image', shared_gate=True), GROUPS, dict(both=(2, 5, 8, 11))),
        (dict(SHARDS, copies_share=True), dict(bbox_head=dict(norm_cfg=dict(type='BN'))), dict(cls=(2, 5), reg=(1, 4))),
        (dict(SHARDS, branches='reg', unit='patch', grid=2), {}, dict(reg=(1, 4))),
        (dict(SHARDS, copies=1), GROUPS, {}),
        (dict(SHARDS, shards=1, shared_expert=True), GROUPS, dict(cls=2, reg=1)),
        (dict(SHARDS, shards=3, shared_expert=True), GROUPS, dict(cls=(2, 5, 8), reg=(1, 4, 7))),
    ],
    ids=['level', 'image, one gate', 'copies that share', 'patch', 'one copy', 'one shard and a shared', 'shared'],
)
def test_copies_of_all_shards_put_together_predict_what_they_do_when_forced(moe, changes, forced, tmp_path, capsys):
    path, dense = write_config(tmp_path / 'moe.py', moe, **changes), write_config(tmp_path / 'dense.py', **changes)
    checkpoint = write_checkpoint(path, tmp_path / 'moe.pth')
    expert = {'both': ['2'], 'cls': ['cls=2', 'reg=1'], 'reg': ['1']}[next(iter(forced))] if forced else None
    densify(str(path), str(checkpoint), str(tmp_path / 'out.pth'), expert=expert)
    plain, mixture = model_of(dense, tmp_path / 'out.pth'), model_of(path, checkpoint)
    with intervene(mixture, {f'bbox_head.{layer}': Intervention(forced=experts) for layer, experts in forced.items()}):
        assert_same_outputs(plain, mixture)
    out = capsys.readouterr().out
    difference = re.search(r'outputs to the model with the forced experts: (\S+)', out)
    assert float(difference[1]) < 1e-5
    if moe is SHARDS:
        assert 'bbox_head.cls: copy 2 of shard 0, copy 2 of shard 1, ' in out


def test_average_of_shards_is_the_mean_of_copies_side_by_side(tmp_path, capsys):
    path, dense = write_config(tmp_path / 'moe.py', SHARDS, **GROUPS), write_config(tmp_path / 'dense.py', **GROUPS)
    checkpoint = write_checkpoint(path, tmp_path / 'moe.pth')
    densify(str(path), str(checkpoint), str(tmp_path / 'out.pth'), average=True)
    state = torch.load(checkpoint, weights_only=True)['state_dict']

    def means(name: str) -> list[torch.Tensor]:
        key = f'bbox_head.branch_experts.cls.experts.{{}}.{name}'
        return [sum(state[key.format(3 * shard + copy)] for copy in range(3)) / 3 for shard in range(2)]

    head = model_of(dense, tmp_path / 'out.pth').bbox_head
    torch.testing.assert_close(head.cls_convs[1].conv.weight.detach(), torch.cat(means('conv.conv.weight')))
    torch.testing.assert_close(head.cls_convs[1].gn.bias.detach(), torch.cat(means('conv.gn.bias')))
    torch.testing.assert_close(head.retina_cls.weight.detach(), torch.cat(means('predictor.weight'), dim=1))
    torch.testing.assert_close(head.retina_cls.bias.detach(), sum(means('predictor.bias')))
    assert 'bbox_head.cls: mean of the 3 copies of each of 2 shards, 5 tensors' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('moe', 'head', 'expert'),
    [(dict(num_experts=1, top_k=1), {}, None), (SHARDS, GROUPS, ['1'])],  # with one expert there is no choice
    ids=['one expert', 'shards'],
)
def test_there_and_back_is_the_same_bits(tmp_path, moe, head, expert):
    dense = write_checkpoint(write_config(tmp_path / 'dense.py', **head), tmp_path / 'dense.pth')
    path = write_config(tmp_path / 'moe.py', moe, **head)
    upcycle(str(path), str(dense), str(tmp_path / 'moe.pth'), noise=0)
    densify(str(path), str(tmp_path / 'moe.pth'), str(tmp_path / 'out.pth'), expert=expert)
    original, state = (torch.load(file, weights_only=True)['state_dict'] for file in (dense, tmp_path / 'out.pth'))
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], value) for key, value in original.items())
