"""What MoERetinaHead refuses, and what its messages say."""

from __future__ import annotations

import pytest
from small_models import head

from moe_det.errors import MoEConfigError

BAD = [
    (dict(num_expert=4), {}, r"bbox_head\.moe: unknown key 'num_expert'.*Did you mean 'num_experts'\?"),
    (dict(placment='last'), {}, r"unknown key 'placment'.*Did you mean 'placement'\?"),
    (dict(branches=()), {}, r'bbox_head\.moe\.branches is empty'),
    (dict(branches=('cls', 'box')), {}, r"bbox_head\.moe\.branches: unknown value 'box'.*cls, reg"),
    (dict(branches=1), {}, r'bbox_head\.moe\.branches=1'),
    (dict(placement='lats'), {}, r"bbox_head\.moe\.placement: unknown value 'lats'.*Did you mean 'last'\?"),
    (dict(shared_gate=True, branches=('cls',)), {}, r'bbox_head\.moe\.shared_gate: needs both branches'),
    (dict(placement='first', width=0.5), {}, r'bbox_head\.moe\.width=0\.5'),
    (dict(placement='last', width='matched'), {}, r"bbox_head\.moe\.width='matched'"),
    (dict(width=0), {}, r'bbox_head\.moe\.width=0'),
    (dict(width='macthed'), {}, r"bbox_head\.moe\.width='macthed'.*'matched'"),
    (dict(placement='tower'), dict(stacked_convs=0), r'stacked_convs=0'),
    (dict(placement='first'), dict(stacked_convs=0), r'stacked_convs=0'),
    ({}, dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False)), r'loss_cls must have use_sigmoid=True'),
    ({}, dict(norm_cfg=dict(type='SyncBN')), r"bbox_head\.moe: norm_cfg type 'SyncBN'"),
    (dict(num_experts=0), {}, r'bbox_head\.moe\.num_experts=0: expected an integer >= 1'),
    (dict(top_k=5), {}, r'bbox_head\.moe\.top_k=5: expected at most num_experts=4'),
    (dict(top_k=4), {}, r'top_k=num_experts=4.*soft_mixture=True'),
    (dict(unit='patch'), {}, r'bbox_head\.moe\.grid=None: expected an integer >= 2'),
    (dict(unit='level', grid=2), {}, r"bbox_head\.moe\.grid=2: only unit='patch'"),
    (dict(gate=dict(type='GAPLinear')), {}, r"bbox_head\.moe\.gate: unknown moe gate 'GAPLinear'.*GAPLinearGate'\?"),
    (dict(constraint='KLConstraint'), {}, r"bbox_head\.moe\.constraint: expected a dict with the key 'type'"),
    (dict(constraint=dict(type='KLConstraint', weigth=1)), {}, r'bbox_head\.moe\.constraint: KLConstraint: .*weigth'),
    (dict(constraint=[dict(type='KLConstraint')] * 2), {}, r"bbox_head\.moe: two constraints of the kind 'kl'"),
]


@pytest.mark.parametrize('moe, changes, message', BAD, ids=[f'{moe}{changes}' for moe, changes, _ in BAD])
def test_wrong_keys_are_named(moe, changes, message):
    with pytest.raises(MoEConfigError, match=message):
        head({'num_experts': 4, 'top_k': 2, **moe}, **changes)


@pytest.mark.parametrize('moe', [4, 'KLConstraint', [4]])
def test_moe_must_be_a_dict(moe):
    with pytest.raises(MoEConfigError, match=r'bbox_head\.moe=.*expected a dict'):
        head(moe)


@pytest.mark.parametrize('placement', ['tower', 'first', 'last'])
def test_softmax_class_loss_fits_placements_without_class_mixture(placement):
    loss = dict(type='CrossEntropyLoss', use_sigmoid=False)
    assert head(dict(num_experts=2, top_k=1, placement=placement), loss_cls=loss).cls_out_channels == 4
