"""Tools that tell objects by their place refuse layers that decide about tokens, and say what to do instead."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from small_families import family
from small_models import build
from torch import nn

from moe_det.engine.expert_size_hook import ExpertSizeHook
from moe_det.engine.layer_description import layer_infos
from moe_det.errors import MoEConfigError
from moe_det.routing.router import find_routers

FFNS = {'modules': 'decoder.layers.*.ffn', 'type': 'MoEFFN', 'num_experts': 3, 'top_k': 1}
STAGE = {'modules': 'backbone.layer4', 'type': 'MoEBlock'}


@pytest.fixture(scope='module')
def model() -> nn.Module:
    """A small DETR with experts for queries and a block of experts in the backbone."""
    cfg = family('detr/detr_r50_8xb2-150e_coco.py').model
    return build({**cfg, 'type': 'WithExperts', 'detector': 'DETR', 'experts': [FFNS, STAGE]})


def test_size_specialisation_takes_layers_that_have_a_place(model):
    with pytest.raises(MoEConfigError, match=r'^decoder\.layers\.0\.ffn, decoder.*tokens or queries') as error:
        layer_infos(model)
    assert 'choose others with --layers: backbone.layer4.moe_block.moe' in str(error.value)
    (info,) = layer_infos(model, ['backbone.layer4.moe_block.moe'])
    assert info.unit == 'level'


def test_the_hook_says_that_it_must_go(model, monkeypatch):
    hook = ExpertSizeHook()
    monkeypatch.setattr(hook, '_read', lambda runner: None)
    with pytest.raises(MoEConfigError, match=r'ExpertSizeHook \(take it out\)'):
        hook.before_val_epoch(SimpleNamespace(model=model))
    assert len(find_routers(model)) == 3
