"""Fewer experts: the routing that is left is the one that the remaining experts had."""

from __future__ import annotations

import pytest
import torch
from small_files import assert_same_outputs, model_of, write_checkpoint, write_config
from small_models import blocks_after

from moe_det.converters.places import expert_places
from moe_det.converters.prune import config_changes, prune_experts
from moe_det.errors import MoEConfigError
from moe_det.routing import find_routers
from moe_det.routing.intervention import Intervention, intervene

BIAS = dict(type='SelectionBiasConstraint')
RELATIVE = dict(type='RelativeImportanceConstraint')
MEAN = dict(type='MeanImportanceConstraint')
KL = dict(type='KLConstraint')
PLAIN = dict(num_experts=3, top_k=2)
SHARDS = dict(placement='shards', shards=2, copies=3)


def pruned(tmp_path, moe: dict, drop: list[str], change, **changes):
    """Model before and after; the options that the tool prints make the config fit."""
    path = write_config(tmp_path / 'moe.py', moe, **changes)
    checkpoint = write_checkpoint(path, tmp_path / 'moe.pth', change)
    options = prune_experts(str(path), str(checkpoint), str(tmp_path / 'out.pth'), drop=drop, evaluate=False)
    path_after = write_config(tmp_path / 'after.py', moe, **changes)
    text = path_after.read_text()
    cfg = {key: eval(value) for key, value in (option.split('=') for option in options)}
    path_after.write_text(text + '\n' + ''.join(f'{to_item(key)} = {value!r}\n' for key, value in cfg.items()))
    return model_of(path, checkpoint), model_of(path_after, tmp_path / 'out.pth'), cfg


def to_item(key: str) -> str:
    first, *rest = key.split('.')
    return first + ''.join(f'[{int(part) if part.isdigit() else part!r}]' for part in rest)


@pytest.mark.parametrize(
    'moe',
    [
        dict(num_experts=4, top_k=2, constraint=[BIAS, RELATIVE]),
        dict(num_experts=4, top_k=2, unit='patch', grid=2, shared_gate=True, gate=dict(type='TwoConvGAPGate')),
    ],
    ids=['level', 'patch, one gate'],
)
def test_it_predicts_as_if_no_row_could_choose_the_expert(moe, tmp_path):
    def change(model):
        for router in find_routers(model).values():
            if 'selection_bias' in router.constraints:  # acts in evaluation
                router.constraints['selection_bias'].bias.copy_(torch.tensor([[0.5, -0.2, 0.1, 0.0]]))

    drop = ['both=1'] if moe.get('shared_gate') else ['cls=1', 'reg=1']
    before, after, changes = pruned(tmp_path, moe, drop, change)
    assert changes == {'model.bbox_head.moe.num_experts': 3}
    with intervene(before, {layer: Intervention(knocked_out=1) for layer in find_routers(before)}):
        assert_same_outputs(after, before)


def test_other_experts_of_each_branch_down_to_one(tmp_path):
    moe = dict(num_experts=3, top_k=2, constraint=dict(type='KLConstraint'))
    before, after, changes = pruned(tmp_path, moe, ['cls=0,1', 'reg=0', 'reg=2'], lambda model: None)
    assert changes == {'model.bbox_head.moe.num_experts': 1, 'model.bbox_head.moe.top_k': 1}
    assert not find_routers(after)
    with intervene(before, {'bbox_head.cls': Intervention(forced=2), 'bbox_head.reg': Intervention(forced=1)}):
        assert_same_outputs(after, before)


def test_convolutions_and_stages_down_to_k(tmp_path):
    experts = dict(num_experts=3, top_k=2)
    changes = dict(
        backbone=dict(type='MoEResNet', moe=dict(stages=(4,), **experts)),
        bbox_head=dict(conv_cfg=dict(type='MoEConv2d', num_levels=5, **experts)),
    )
    drop = [f'{branch}_convs.{i}.conv=0' for branch in ('cls', 'reg') for i in (0, 1)]
    before, after, options = pruned(tmp_path, None, drop, lambda model: None, **changes)
    assert options == {'model.bbox_head.conv_cfg.num_experts': 2, 'model.bbox_head.conv_cfg.soft_mixture': True}
    layers = [layer for layer in find_routers(before) if layer.startswith('bbox_head')]
    assert len(layers) == 4 and len(find_routers(before)) == 5
    with intervene(before, {layer: Intervention(knocked_out=0) for layer in layers}):
        assert_same_outputs(after, before)


def test_state_of_constraints_and_noise(tmp_path):
    values = torch.tensor([0.6, -0.5, 0.1, -0.2])
    shares = torch.tensor([0.4, 0.1, 0.2, 0.3])

    def change(model):
        for router in find_routers(model).values():
            router.constraints['relative_importance'].relative.copy_(values[None])
            router.constraints['mean_importance'].mean.copy_(shares[None])
            router.constraints['mean_importance'].steps.fill_(7)
            router.noise.scale.weight.copy_(torch.arange(32.0).reshape(4, 8))

    moe = dict(num_experts=4, top_k=2, constraint=[RELATIVE, MEAN], noise=True)
    before, after, _ = pruned(tmp_path, moe, ['cls=1', 'reg=3'], change)
    router = after.bbox_head.routers['cls']
    # 0.6, 0.1 and -0.2 have the mean 1/6; the sum of the state is 0, so that never all experts are forbidden
    expected = torch.tensor([[0.6, 0.1, -0.2]]) - 0.5 / 3
    torch.testing.assert_close(router.constraints['relative_importance'].relative, expected)
    torch.testing.assert_close(router.constraints['mean_importance'].mean, torch.tensor([[0.4, 0.2, 0.3]]) / 0.9)
    assert router.constraints['mean_importance'].steps.tolist() == [7]
    kept = [0, 2, 3]
    assert torch.equal(router.noise.scale.weight, torch.arange(32.0).reshape(4, 8)[kept])
    assert torch.equal(router.gate.fc.weight, before.bbox_head.routers['cls'].gate.fc.weight[kept])
    assert torch.equal(router.gate.fc.bias, before.bbox_head.routers['cls'].gate.fc.bias[kept])
    assert router.experts_and_k.tolist() == [3, 2]
    assert router.noise.draws == before.bbox_head.routers['cls'].noise.draws


@pytest.mark.parametrize(
    ('moe', 'given', 'message'),
    [
        (
            PLAIN,
            dict(drop=['cls=0']),
            r'model\.bbox_head\.moe\.num_experts is one number .*: bbox_head\.cls 2, bbox_head\.reg 3',
        ),
        (PLAIN, dict(drop=['cls=3']), r'--drop cls=3: bbox_head\.cls has the experts 0 to 2'),
        (PLAIN, dict(drop=['cls=0,1,2']), r'bbox_head\.cls would keep no expert'),
        (PLAIN, dict(drop=['cls']), 'expected LAYER=EXPERT'),
        (PLAIN, dict(drop=['neck=1']), "unknown layer 'neck'; the names that exist are: bbox_head.cls, bbox_head.reg"),
        (PLAIN, {}, 'either --drop'),
        (SHARDS, dict(drop=['cls=0', 'reg=0']), r'bbox_head\.cls would keep 2 of shard 0, 3 of shard 1 copies'),
        (SHARDS, dict(drop=['cls=0,1,2']), r'bbox_head\.cls would keep no copy of shard 0'),
        (
            SHARDS,
            dict(drop=['cls=0,3']),
            r'model\.bbox_head\.moe\.copies is one number .*: bbox_head\.cls 4, bbox_head\.reg 6',
        ),
        (SHARDS, dict(drop=['cls=6']), r'bbox_head\.cls has the experts 0 to 5'),
        (SHARDS, dict(keep=3), r'--keep 3: the layers have up to 3 copies of a shard'),
    ],
)
def test_wrong_uses(tmp_path, moe, given, message):
    path = write_config(tmp_path / 'moe.py', moe)
    checkpoint = write_checkpoint(path, tmp_path / 'moe.pth')
    with pytest.raises(MoEConfigError, match=message):
        prune_experts(str(path), str(checkpoint), str(tmp_path / 'out.pth'), **given, evaluate=False)
    assert not (tmp_path / 'out.pth').exists()


def test_keys_of_several_plugins_are_not_mixed_up(tmp_path):
    plugins = [blocks_after(stage, num_experts=3, top_k=1) for stage in (3, 4)]
    model = model_of(write_config(tmp_path / 'moe.py', depth=50, backbone=dict(plugins=plugins)))
    cfg = dict(backbone=dict(type='ResNet', plugins=plugins))
    places = expert_places(model)
    kept = {place.router_label: [0, 1] for place in places}
    with pytest.raises(MoEConfigError, match=r'come from model\.backbone\.plugins\.0\.cfg or model'):
        config_changes(cfg, places, kept)
    one = [place for place in places if '.layer3.' in place.path]
    changes = config_changes(dict(backbone=dict(plugins=plugins[:1])), one, kept)
    assert changes == {'backbone.plugins.0.cfg.num_experts': 2}


def never_chosen(experts: dict[str, list[int]]):
    """Plants gates that never choose these experts."""

    def change(model):
        for layer, router in find_routers(model).items():
            router.gate.fc.weight *= 10  # rows differ in what they choose
            router.gate.fc.bias[experts[layer.rpartition('.')[2]]] = -1e4

    return change


@pytest.mark.parametrize(
    'moe, share',
    [
        (dict(SHARDS, constraint=[KL, BIAS]), False),
        (dict(SHARDS, num_experts=6, top_k=2, unit='image'), True),
        (dict(SHARDS, shards=1, copies=6), False),
    ],
    ids=['level', 'image, copies that share', 'one shard'],
)
def test_copies_of_shards(moe, share, tmp_path):
    out_of = dict(cls=[1, 5], reg=[0, 4])
    drop = [f'{branch}={",".join(map(str, experts))}' for branch, experts in out_of.items()]
    before, after, changes = pruned(tmp_path, dict(moe, copies_share=share), drop, never_chosen(out_of))
    expected = {'copies': 4 if moe['shards'] == 1 else 2} | ({'num_experts': 4} if 'num_experts' in moe else {})
    assert changes == {f'model.bbox_head.moe.{key}': value for key, value in expected.items()}
    assert_same_outputs(after, before)
    group = after.bbox_head.branch_experts['cls']
    assert (group.common is not None) == share and len(group) == 4
    old = before.bbox_head.branch_experts['cls']
    for new, kept in enumerate([0, 2, 3, 4]):
        torch.testing.assert_close(
            group.weights_of(new)['predictor.weight'], old.weights_of(kept)['predictor.weight'], rtol=0, atol=1e-6
        )


def test_shards_down_to_one_copy(tmp_path):
    moe = dict(SHARDS, constraint=RELATIVE, copies_share=True)
    before, after, changes = pruned(tmp_path, moe, ['cls=0,1,3,5', 'reg=1,2,4,5'], lambda model: None)
    expected = dict(copies=1, constraint=None, copies_share=False)
    assert changes == {f'model.bbox_head.moe.{key}': value for key, value in expected.items()}
    assert not find_routers(after)
    forced = {'bbox_head.cls': Intervention(forced=(2, 4)), 'bbox_head.reg': Intervention(forced=(0, 3))}
    with intervene(before, forced):
        assert_same_outputs(after, before)


def test_state_of_constraints_of_shards_stays_fair_in_each(tmp_path):
    values = torch.tensor([0.6, -0.5, -0.1, -0.3, 0.2, 0.1])

    def change(model):
        for router in find_routers(model).values():
            router.constraints['relative_importance'].relative.copy_(values[None])

    _, after, _ = pruned(tmp_path, dict(SHARDS, constraint=RELATIVE), ['cls=1,4', 'reg=0,3'], change)
    relative = after.bbox_head.routers['cls'].constraints['relative_importance'].relative
    # 0.6 and -0.1 of shard 0 have the mean 0.25, -0.3 and 0.1 of shard 1 the mean -0.1
    torch.testing.assert_close(relative, torch.tensor([[0.35, -0.35, -0.2, 0.2]]))


def test_the_only_expert_shares_with_none(tmp_path):
    moe = dict(num_experts=2, top_k=1, weighting='straight_through', copies_share=True)
    before, after, changes = pruned(tmp_path, moe, ['cls=0', 'reg=1'], lambda model: None)
    assert changes == {'model.bbox_head.moe.num_experts': 1, 'model.bbox_head.moe.copies_share': False}
    with intervene(before, {'bbox_head.cls': Intervention(forced=1), 'bbox_head.reg': Intervention(forced=0)}):
        assert_same_outputs(after, before)
