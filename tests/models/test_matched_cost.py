"""What experts cost, counted by PyTorch on the modules themselves."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.backbones import ResNet
from small_models import head, mmdet_scope, multiply_adds

from moe_det.errors import MoEConfigError
from moe_det.models import MoEResNet

STAGES = (1, 2, 3, 4)


def moe_resnet(depth: int, **moe) -> MoEResNet:
    """A full-size backbone without memory for its weights."""
    style = moe.pop('style', 'pytorch')
    with mmdet_scope(), torch.device('meta'):
        return MoEResNet(depth=depth, style=style, moe=dict(stages=STAGES, **moe))


@pytest.mark.parametrize(
    'depth, style, top_k',
    [
        *[(18, 'pytorch', k) for k in (1, 2, 3)],
        (34, 'pytorch', 4),
        *[(50, 'pytorch', k) for k in (1, 2, 3, 4)],
        *[(50, 'caffe', k) for k in (2, 4)],
        (101, 'pytorch', 2),
    ],
)
def test_matched_stages_cost_one_dense_stage(depth, style, top_k):
    moe = moe_resnet(depth, num_experts=top_k, top_k=top_k, soft_mixture=True, width='matched', style=style)
    with mmdet_scope(), torch.device('meta'):
        dense = ResNet(depth=depth, style=style)
    widest = 64 if depth < 50 else 256
    inputs = {stage: (64 if stage == 1 else widest * 2 ** (stage - 2)) for stage in STAGES}
    for stage, channels in inputs.items():
        x = torch.empty(1, channels, 16, 16, device='meta')
        experts = [multiply_adds(e, x) for e in getattr(moe, f'layer{stage}').expert_group.experts]
        assert len(set(experts)) == 1
        cost = multiply_adds(getattr(dense, f'layer{stage}'), x)
        assert top_k * experts[0] == pytest.approx(cost, rel=0.05), f'stage {stage}'


@pytest.mark.parametrize(
    'stage, dense, expert', [(1, 147968, 75023), (2, 525568, 267024), (3, 2099712, 1010400), (4, 8393728, 4037448)]
)
def test_narrow_experts_have_the_papers_size(stage, dense, expert):
    moe = moe_resnet(18, num_experts=2, top_k=1)
    with mmdet_scope(), torch.device('meta'):
        plain = ResNet(depth=18)
    group = getattr(moe, f'layer{stage}').expert_group
    assert sum(p.numel() for p in getattr(plain, f'layer{stage}').parameters()) == dense
    assert [sum(p.numel() for p in e.parameters()) for e in group.experts] == [expert, expert]


def test_too_many_experts_to_match_are_refused():
    with pytest.raises(MoEConfigError, match=r"backbone\.moe \(stage 2\)\.width='matched': 4 experts .*1\.14 times"):
        moe_resnet(18, num_experts=5, top_k=4, width='matched')


@pytest.mark.parametrize('placement', ['branch', 'tower'])
@pytest.mark.parametrize('top_k', [1, 2, 4])
def test_matched_head_experts_cost_the_dense_branch(top_k, placement):
    size = dict(num_classes=80, in_channels=64, feat_channels=64, stacked_convs=4)
    moe = head(dict(num_experts=5, top_k=top_k, width='matched', placement=placement), **size)
    dense = head(**size)
    maps = (torch.randn(1, 64, 8, 8),)
    assert multiply_adds(moe, maps) == pytest.approx(multiply_adds(dense, maps), rel=0.05)
    widths = {branch: g.experts[0].convs[0].out_channels for branch, g in moe.branch_experts.items()}
    assert all((width == 64) == (top_k == 1) for width in widths.values()), widths


@pytest.mark.parametrize('placement', ['branch', 'tower'])
def test_width_is_a_factor_of_the_channels(placement):
    moe = head(dict(num_experts=2, top_k=1, width=0.5, placement=placement))
    for group in moe.branch_experts.values():
        for expert in group.experts:
            assert [c.out_channels for c in expert.convs] == ([4, 4] if placement == 'branch' else [4, 8])


@pytest.mark.parametrize('placement, stacked_convs', [('tower', 1), ('branch', 0)])
def test_nothing_to_narrow_is_refused(placement, stacked_convs):
    moe = dict(num_experts=4, top_k=2, width='matched', placement=placement)
    with pytest.raises(MoEConfigError, match=r"bbox_head\.moe\.width='matched': 2 experts .*2\.00 times"):
        head(moe, stacked_convs=stacked_convs)
