"""Tools that tell objects by their place refuse tokens that cannot be followed, and say what to do instead."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from small_models import build, family, with_experts
from torch import nn

from moe_det.errors import MoEConfigError
from moe_det.hooks.expert_size_hook import ExpertSizeHook
from moe_det.probing.layer_description import layer_infos
from moe_det.routing.router import find_routers

FFNS = {'modules': '**.layers.*.ffn', 'type': 'MoEFFN', 'num_experts': 3, 'top_k': 1}
STAGE = {'modules': 'backbone.layer4', 'type': 'MoEBlock'}
OF_SWIN = {'modules': 'backbone.stages.3.blocks.*.ffn', 'type': 'MoEFFN', 'num_experts': 3, 'top_k': 1}
TOWER = {'modules': 'bbox_head.cls_convs.0', 'type': 'MoEConv2d', 'num_levels': 5}


def detector(name: str, experts: list[dict]) -> nn.Module:
    return build(with_experts(family(name).model, experts))


@pytest.mark.parametrize('unit', ['token', 'window'])
def test_size_specialisation_takes_what_it_can_follow(unit):
    model = detector('swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py', [{**OF_SWIN, 'unit': unit}, TOWER])
    with pytest.raises(MoEConfigError, match=r'^backbone\.stages\.3\.blocks\.0\.ffn, .*1\.ffn: .*tokens') as error:
        layer_infos(model)
    assert 'choose others with --layers: bbox_head.cls_convs.0.conv' in str(error.value)
    assert [info.unit for info in layer_infos(model, ['bbox_head.cls_convs.0.conv'])] == ['level']


def test_tokens_of_encoders_are_followed_by_the_report_and_not_by_the_hook(monkeypatch):
    model = detector('detr/detr_r50_8xb2-150e_coco.py', [FFNS, STAGE])
    assert [info.unit for info in layer_infos(model)] == ['level', 'token', 'token', 'query', 'query']
    hook = ExpertSizeHook()
    monkeypatch.setattr(hook, '_read', lambda runner: None)
    refused = r'^encoder\.layers\.0\.ffn, encoder\.layers\.1\.ffn: .*ExpertSizeHook \(take it out\)'
    with pytest.raises(MoEConfigError, match=refused):
        hook.before_val_epoch(SimpleNamespace(model=model))
    assert len(find_routers(model)) == 5
