"""Every MoE key that cannot be built from is refused with its name, its value and what was expected."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe_det.errors import MoEConfigError
from moe_det.layers import MoEBlock, MoEConv2d, MoESettings
from moe_det.registry import CONSTRAINTS, GATES
from moe_det.routing import ConvGAPGate, GAPLinearGate, KLConstraint, RelativeImportanceConstraint

KL = {'type': 'KLConstraint'}

# settings, what the message must contain
BAD = [
    ({'num_experts': 0}, ['num_experts=0', 'integer >= 1']),
    ({'num_experts': -2}, ['num_experts=-2', 'integer >= 1']),
    ({'num_experts': 2.0}, ['num_experts=2.0', 'integer >= 1']),
    ({'num_experts': '4'}, ["num_experts='4'", 'integer >= 1']),
    ({'num_experts': True}, ['num_experts=True', 'integer >= 1']),
    ({'top_k': 0}, ['top_k=0', 'integer >= 1']),
    ({'top_k': None}, ['top_k=None', 'integer >= 1']),
    ({'top_k': 5}, ['top_k=5', 'at most num_experts=4']),
    ({'num_experts': 1}, ['top_k=2', 'at most num_experts=1']),
    ({'num_experts': 3, 'top_k': 3}, ['top_k=num_experts=3', 'soft_mixture=True']),
    ({'num_experts': 3, 'top_k': 3, 'soft_mixture': 'no'}, ["soft_mixture='no'", 'True or False']),
    ({'shared_expert': 0}, ['shared_expert=0', 'True, False or a number of experts >= 1']),
    ({'shared_expert': 'two'}, ["shared_expert='two'", 'True, False or a number']),
    ({'noise': 'auto'}, ["noise='auto'", 'True or False']),
    (
        {'gate': {'type': 'GAPLinerGate'}},
        ['gate', "'GAPLinerGate'", *GATES.module_dict, "Did you mean 'GAPLinearGate'"],
    ),
    ({'gate': {'type': 'ReLU'}}, ['gate', "'ReLU'", *GATES.module_dict]),
    ({'gate': 'GAPLinearGate'}, ['gate', "'type'", "'GAPLinearGate'"]),
    ({'gate': {'type': 'ConvGAPGate', 'hidden': 3}}, ['gate', 'ConvGAPGate', 'hidden']),
    ({'constraint': {'type': 'KL'}}, ['constraint', "'KL'", *CONSTRAINTS.module_dict]),
    ({'constraint': {'type': 'KLConstrain'}}, ['constraint', "Did you mean 'KLConstraint'"]),
    ({'constraint': 'KLConstraint'}, ['constraint', "'type'", "'KLConstraint'"]),
    ({'constraint': {'weight': 1}}, ['constraint', "'type'", "{'weight': 1}"]),
    ({'constraint': [KL, {'type': 'None'}]}, ['constraint', "'None'", *CONSTRAINTS.module_dict]),
    ({'constraint': [KL, KL]}, ["two constraints of the kind 'kl'"]),
    ({'constraint': {**KL, 'weight': -0.5}}, ['constraint', 'KLConstraint', 'weight=-0.5', '>= 0']),
    ({'constraint': {**KL, 'weight': float('nan')}}, ['constraint', 'weight=nan', '>= 0']),
    ({'constraint': {**KL, 'weight': '1'}}, ['constraint', "weight='1'", '>= 0']),
    ({'constraint': {**KL, 'factor': 2}}, ['constraint', 'KLConstraint', 'factor']),
    (
        {'constraint': {'type': 'RelativeImportanceConstraint', 'threshold': -1}},
        ['constraint', 'RelativeImportanceConstraint', 'threshold=-1', '>= 0'],
    ),
    ({'constraint': {'type': 'MeanImportanceConstraint', 'threshold': -0.1}}, ['threshold=-0.1', '>= 0']),
    ({'constraint': {'type': 'SelectionBiasConstraint', 'rate': -1}}, ['rate=-1', '>= 0']),
    ({'unit': 'pixel'}, ['unit', "'pixel'", 'image, level, patch']),
    ({'unit': None}, ['unit', 'None', 'image, level, patch']),
    ({'balance_over': 'levels'}, ['balance_over', "'levels'", 'all, level', "Did you mean 'level'"]),
    ({'dispatch': 'sparse'}, ['dispatch', "'sparse'", 'all, sorted']),
    ({'unit': 'patch'}, ['grid=None', 'integer >= 2']),
    ({'unit': 'patch', 'grid': 1}, ['grid=1', 'integer >= 2']),
    ({'unit': 'patch', 'grid': (2, 2)}, ['grid=(2, 2)', 'integer >= 2']),
    ({'grid': 2}, ['grid=2', "unit='patch'", "'level'"]),
    ({'unit': 'image', 'grid': 2}, ['grid=2', "unit='patch'", "'image'"]),
    ({'num_expert': 4}, ["'num_expert'", "Did you mean 'num_experts'", 'top_k']),
    ({'topk': 1}, ["'topk'", "Did you mean 'top_k'"]),
    ({'copy_noise': -0.1}, ['copy_noise=-0.1', '>= 0']),
    ({'copy_noise': float('nan')}, ['copy_noise=nan', '>= 0']),
    ({'copy_redraw': 1}, ['copy_redraw=1', '>= 0 and < 1']),
    ({'copy_redraw': -0.1}, ['copy_redraw=-0.1', '>= 0 and < 1']),
    ({'copy_redraw': True}, ['copy_redraw=True', '>= 0 and < 1']),
    ({'copies_share': 'yes'}, ["copies_share='yes'", 'True or False']),
    ({'weighting': 'hard'}, ["'hard'", 'softmax, straight_through']),
    ({'weighting': 'straight_through'}, ["weighting='straight_through'", 'top_k=1', 'top_k is 2']),
]


BUILD = {'MoEConv2d(4, 8)': lambda **moe: MoEConv2d(4, 8, 3, **moe), 'MoEBlock(8)': lambda **moe: MoEBlock(8, **moe)}


@pytest.mark.parametrize(('bad', 'parts'), BAD, ids=[str(bad)[1:-1][:60] for bad, _ in BAD])
@pytest.mark.parametrize('where', BUILD)
def test_bad_values_are_refused(where, bad, parts):
    with pytest.raises(MoEConfigError) as error:
        BUILD[where](**bad)
    for part in [where, *parts]:
        assert part in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('num_levels', [0, -1, 2.5, '5'])
@pytest.mark.parametrize('build', BUILD.values(), ids=BUILD)
def test_bad_numbers_of_levels_are_refused(build, num_levels):
    with pytest.raises(MoEConfigError, match=rf'num_levels={num_levels!r}: expected an integer >= 1'):
        build(num_levels=num_levels, balance_over='level')


@pytest.mark.parametrize('build', BUILD.values(), ids=BUILD)
def test_balance_inside_one_level_is_refused(build):
    with pytest.raises(MoEConfigError, match="balance_over='level'"):
        build(balance_over='level')
    build(balance_over='level', num_levels=2)


@pytest.mark.parametrize('norm', ['SyncBN', 'MMSyncBN', 'NaiveSyncBN', nn.SyncBatchNorm])
def test_synchronised_norms_are_refused_inside_experts(norm):
    with pytest.raises(MoEConfigError, match='Sync.*cannot be used inside experts'):
        MoEBlock(8, norm_cfg={'type': norm})


@pytest.mark.parametrize('reduction', [0, -1, 1.5])
def test_bad_reduction(reduction):
    with pytest.raises(MoEConfigError, match='reduction='):
        MoEBlock(8, reduction=reduction)


def test_good_settings_build_what_they_say():
    settings = MoESettings.from_config(
        {
            'num_experts': 3,
            'top_k': 1,
            'gate': {'type': 'ConvGAPGate', 'hidden_channels': 5},
            'constraint': [{'type': 'KLConstraint', 'weight': 0.7}, {'type': 'RelativeImportanceConstraint'}],
            'unit': 'patch',
            'grid': 3,
            'balance_over': 'level',
            'shared_expert': True,
        },
        'x.moe',
    )
    router = settings.build_router(6, 'x.moe', num_levels=4)
    assert isinstance(router.gate, ConvGAPGate)
    assert router.gate.conv.weight.shape == (5, 6, 3, 3)
    kl, relative = router.constraints.values()
    assert isinstance(kl, KLConstraint)
    assert kl.weight == 0.7
    assert isinstance(relative, RelativeImportanceConstraint)
    assert relative.relative.shape == (4, 3)
    assert (router.top_k, router.unit, router.num_groups, router.label) == (1, 'patch', 4, 'x.moe')
    experts = settings.build_experts(lambda: nn.Conv2d(6, 6, 3, padding=1))
    assert len(experts) == 3
    assert experts.shared is not None
    weights = [expert.weight for expert in [*experts.experts, experts.shared]]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])  # independent, no copies


def test_a_class_works_in_place_of_its_name():
    settings = MoESettings.from_config({'gate': {'type': GAPLinearGate}, 'constraint': {'type': KLConstraint}}, 'moe')
    assert isinstance(settings.build_router(4, 'moe').gate, GAPLinearGate)


def test_one_expert_is_the_plain_module():
    layer = MoEConv2d(3, 5, 3, padding=1, num_experts=1, top_k=1, constraint=KL, shared_expert=False)
    assert layer.router is None
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(layer(x), layer.expert_group.experts[0](x))
    # the constraint of a single expert is still checked
    with pytest.raises(MoEConfigError, match='weight=-1'):
        MoEConv2d(3, 5, 3, num_experts=1, top_k=1, constraint={**KL, 'weight': -1})


def test_a_soft_mixture_runs_all_experts_when_it_is_meant():
    layer = MoEConv2d(3, 5, 3, num_experts=2, top_k=2, soft_mixture=True).eval()
    x = torch.randn(2, 3, 6, 6)
    weights = torch.softmax(layer.router.gate(x), 1)
    first, second = (expert(x) for expert in layer.expert_group.experts)
    expected = weights[:, :1, None, None] * first + weights[:, 1:, None, None] * second
    torch.testing.assert_close(layer(x), expected)


def test_the_old_name_of_running_all_experts_works_with_a_warning():
    with pytest.warns(FutureWarning, match="layer.moe.dispatch='dense' is now 'all'"):
        settings = MoESettings.from_config({'dispatch': 'dense'}, 'layer.moe')
    assert settings == MoESettings.from_config({'dispatch': 'all'}, 'layer.moe')
