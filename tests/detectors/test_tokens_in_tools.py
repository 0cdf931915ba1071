"""Tools that tell objects by their place refuse tokens that cannot be followed, and say what to do instead."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from small_models import build, family
from torch import nn

from moe_det.errors import MoEConfigError
from moe_det.hooks.expert_size_hook import ExpertSizeHook
from moe_det.probing.layer_description import layer_infos
from moe_det.routing.router import find_routers

FFNS = {'modules': '**.layers.*.ffn', 'type': 'MoEFFN', 'num_experts': 3, 'top_k': 1}
STAGE = {'modules': 'backbone.layer4', 'type': 'MoEBlock'}


@pytest.fixture(scope='module')
def model() -> nn.Module:
    """A small DETR with experts for queries and a block of experts in the backbone."""
    cfg = family('detr/detr_r50_8xb2-150e_coco.py').model
    return build({**cfg, 'type': 'WithExperts', 'detector': 'DETR', 'experts': [FFNS, STAGE]})


def test_size_specialisation_takes_what_it_can_follow(model):
    with pytest.raises(MoEConfigError, match=r'^encoder\.layers\.0\.ffn, encoder\.layers\.1\.ffn: .*tokens') as error:
        layer_infos(model)
    others = ['backbone.layer4.moe_block.moe', 'decoder.layers.0.ffn', 'decoder.layers.1.ffn']
    assert f'choose others with --layers: {", ".join(others)}' in str(error.value)
    assert [info.unit for info in layer_infos(model, others)] == ['level', 'query', 'query']


def test_the_hook_says_that_it_must_go(model, monkeypatch):
    hook = ExpertSizeHook()
    monkeypatch.setattr(hook, '_read', lambda runner: None)
    with pytest.raises(MoEConfigError, match=r'ExpertSizeHook \(take it out\)'):
        hook.before_val_epoch(SimpleNamespace(model=model))
    assert len(find_routers(model)) == 5
