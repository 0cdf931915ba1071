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
    (dict(top_k=5), {}, r'bbox_head\.moe\.top_k=5: expected at most num_experts=4'),
    (dict(mixes='kernel'), {}, r"bbox_head\.moe\.mixes: unknown value 'kernel'.*'kernels'"),
    (dict(mixes='kernels', class_mixture='logits'), {}, r"class_mixture='logits': with mixes='kernels' there is one"),
    (dict(mixes='kernels', gate=dict(type='AttentiveGate')), {}, r"mixes='kernels': AttentiveGate decides from what"),
    (dict(mixes='kernels'), dict(norm_cfg=dict(type='BN')), r"mixes='kernels': .*BatchNorm2d with running statistics"),
    (dict(class_mixture='logit'), {}, r"bbox_head\.moe\.class_mixture: unknown value 'logit'.*'logits'\?"),
]


SHARDS = [
    (dict(num_experts=6), {}, r'bbox_head\.moe\.num_experts=6: follows from shards=2 and copies=4 as 8'),
    (dict(top_k=1), {}, r'bbox_head\.moe\.top_k=1: follows from shards=2 and copies=4 as 2'),
    (dict(shards=0), {}, r'bbox_head\.moe\.shards=0: expected an integer >= 1'),
    (dict(copies=0), {}, r'bbox_head\.moe\.copies=0: expected an integer >= 1'),
    (dict(shards=2.0), {}, r'bbox_head\.moe\.shards=2\.0: expected an integer'),
    (dict(shards=3), {}, r'bbox_head\.moe\.shards=3: does not divide feat_channels=8'),
    (dict(shards=4), dict(norm_cfg=dict(type='GN', num_groups=2)), r'shards=4: does not divide the num_groups=2'),
    ({}, dict(norm_cfg=dict(type='LN')), r"bbox_head\.moe\.placement='shards': norm_cfg=.*'LN'.*'GN', 'BN', 'IN'"),
    (dict(mixes='kernels'), {}, r"bbox_head\.moe\.mixes='kernels': of a shard one copy runs"),
    ({}, dict(stacked_convs=0), r'stacked_convs=0'),
    ({}, dict(conv_cfg=dict(type='ConvWS')), r"conv_cfg=.*'ConvWS'.*dict\(type='Conv2d'\)"),
    (dict(weighting='softmax'), {}, r"bbox_head\.moe\.weighting='softmax'"),
    (dict(shared_expert=True), {}, r'shards=2 and a shared expert: 3 slices do not divide feat_channels=8'),
    (
        dict(shards=3, shared_expert=True),
        dict(norm_cfg=dict(type='GN', num_groups=2)),
        r'shards=3 and a shared expert: 4 slices do not divide the num_groups=2',
    ),
    (dict(width=0.5), {}, r'bbox_head\.moe\.width=0\.5'),
    (dict(width='matched'), {}, r"bbox_head\.moe\.width='matched'"),
    (dict(copies=1, constraint=dict(type='RelativeImportanceConstraint')), {}, r'bbox_head\.moe\.constraint.*copies=1'),
    (dict(copies=1, copies_share=True), {}, r'bbox_head\.moe\.copies_share.*copies=1'),
    (dict(class_mixture='logits'), {}, r"bbox_head\.moe\.class_mixture='logits': applies to placement='branch'"),
    (dict(placement='branch'), {}, r"bbox_head\.moe\.shards=2: applies to placement='shards'"),
]


REFUSED = [
    *[({'num_experts': 4, 'top_k': 2, **moe}, changes, message) for moe, changes, message in BAD],
    *[({'placement': 'shards', 'shards': 2, **moe}, changes, message) for moe, changes, message in SHARDS],
    *[(moe, {}, r'bbox_head\.moe=.*expected a dict') for moe in (4, 'KLConstraint', [4])],
]


@pytest.mark.parametrize('moe, changes, message', REFUSED, ids=[f'{moe}{changes}' for moe, changes, _ in REFUSED])
def test_wrong_keys_are_named(moe, changes, message):
    with pytest.raises(MoEConfigError, match=message):
        head(moe, **changes)


@pytest.mark.parametrize(
    'moe',
    [
        {},
        dict(num_experts=8, top_k=2, weighting='straight_through', width=1, shared_expert=False),
        dict(copies=1, num_experts=2),
        dict(shards=1, copies=1),
    ],
    ids=str,
)
def test_keys_of_shards_that_agree(moe):
    own = head({'placement': 'shards', **moe}, norm_cfg=dict(type='GN', num_groups=4))
    shards, copies = moe.get('shards', 2), moe.get('copies', 4)
    assert [len(group) for group in own.branch_experts.values()] == [shards * copies] * 2
    assert (own.moe.shards, own.moe.copies) == (shards, copies)
    assert list(own.routers) == (['cls', 'reg'] if copies > 1 else [])


@pytest.mark.parametrize(
    'moe', [dict(placement='tower'), dict(placement='first'), dict(placement='last'), dict(class_mixture='logits')]
)
def test_softmax_class_loss_fits_where_no_probabilities_are_mixed(moe):
    loss = dict(type='CrossEntropyLoss', use_sigmoid=False)
    assert head(dict(num_experts=2, top_k=1, **moe), loss_cls=loss).cls_out_channels == 4
