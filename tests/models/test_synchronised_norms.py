"""SyncBN beside experts, never inside them: a process whose expert got no rows would not join."""

from __future__ import annotations

import pytest
import torch
from mmengine.model.utils import convert_sync_batchnorm
from small_models import detector
from torch import nn

from moe_det.errors import MoEConfigError
from moe_det.routing.experts import ExpertGroup

FOUR = dict(num_experts=4, top_k=2)
SYNCHRONISED = dict(type='SyncBN', requires_grad=True)


def experts_of(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if '.experts.' in name]


def test_convolutions_with_experts_fit_into_a_backbone_with_syncbn():
    model = detector(backbone=dict(type='MoEResNet', moe=dict(convs=(2, 3), **FOUR), norm_cfg=SYNCHRONISED))
    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == 20  # of a ResNet-18
    assert len(experts_of(model)) == 2 * 4 and {type(module) for module in experts_of(model)} == {nn.Conv2d}
    model.train()


@pytest.mark.parametrize(
    'settings',
    [
        dict(backbone=dict(type='MoEResNet', moe=dict(stages=(4,), **FOUR))),
        dict(moe=FOUR, bbox_head=dict(norm_cfg=dict(type='BN'))),
    ],
    ids=['backbone', 'head'],
)
def test_sync_bn_that_reaches_experts_is_refused_before_the_first_step(settings):
    # mmengine's config key `sync_bn` converts all norms, whatever norm_cfg says
    model = detector(**settings)
    model.train()
    model = convert_sync_batchnorm(model, 'torch')
    assert any(isinstance(module, nn.SyncBatchNorm) for module in experts_of(model))
    with pytest.raises(MoEConfigError, match=r'sync_bn.*experts\.0.*norm_eval=True'):
        model.train()
    model.eval()
    for group in (module for module in model.modules() if isinstance(module, ExpertGroup)):
        group.freeze()
    model.train()  # frozen experts stay in evaluation, where norms do not wait for other processes
    assert not any(module.training for module in experts_of(model))


def test_sync_bn_that_reaches_no_expert_is_accepted():
    # experts of the head without norms, and one expert, which runs for every row
    for settings in (
        dict(moe=FOUR),
        dict(backbone=dict(type='MoEResNet', moe=dict(stages=(4,), num_experts=1, top_k=1))),
    ):
        model = convert_sync_batchnorm(detector(**settings), 'torch')
        assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
        assert model.train().training
    with torch.no_grad():
        assert model.eval()(torch.rand(1, 3, 64, 64), mode='tensor')
