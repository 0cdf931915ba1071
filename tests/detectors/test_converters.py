"""Upcycling, densifying, pruning and costs of detectors whose experts WithExperts put in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_files import IMPORTS, model_of
from small_models import batch, family, predictions_of, spread_weights, with_experts
from small_regions import FASTER

from moe_det.converters.densify import densify
from moe_det.converters.files import config_text
from moe_det.converters.places import FFN, expert_places, keys_of, moe_keys
from moe_det.converters.prune import prune_experts
from moe_det.converters.upcycle import upcycle
from moe_det.cost.part_costs import model_cost
from moe_det.routing.intervention import Intervention, intervene
from moe_det.routing.router import find_routers
from moe_det.running.launch import load_config

DETR = 'detr/detr_r50_8xb2-150e_coco.py'
COPIES = {'modules': 'decoder.layers.*.ffn', 'type': 'MoEFFN', 'num_experts': 3, 'top_k': 2}
SHARDS = {'modules': '**.ffn', 'type': 'MoEFFN', 'placement': 'shards', 'shards': 2, 'copies': 2}
SHARED = {**SHARDS, 'modules': 'encoder.layers.*.ffn', 'shared_expert': True, 'shards': 3}
CONVS = {'modules': 'backbone.layer4.*.conv2', 'type': 'MoEConv2d', 'num_experts': 3, 'top_k': 2}


def write_config(path: Path, experts: list[dict] | None, name: str = DETR) -> Path:
    """The small detector as a config file, with experts where some are given."""
    cfg = family(name)
    if experts is not None:
        cfg.model = with_experts(cfg.model, experts)
        cfg.custom_imports, cfg.custom_hooks = IMPORTS, [dict(type='MoEHook')]
    path.write_text(config_text(cfg))
    return path


@pytest.fixture(scope='module')
def dense(tmp_path_factory) -> tuple[Path, Path]:
    """Config and checkpoint without experts."""
    folder = tmp_path_factory.mktemp('dense')
    config = write_config(folder / 'dense.py', None)
    model = spread_weights(model_of(config))
    meta = dict(dataset_meta=dict(classes=('a', 'b', 'c')))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / 'dense.pth')
    return config, folder / 'dense.pth'


@pytest.mark.parametrize('experts', [[COPIES], [SHARDS], [SHARED, CONVS]], ids=['copies', 'shards', 'two entries'])
def test_there_and_back_again(experts, dense, tmp_path, capsys):
    config = write_config(tmp_path / 'moe.py', experts)
    upcycle(str(config), str(dense[1]), str(tmp_path / 'moe.pth'), noise=0)
    text = capsys.readouterr().out
    assert 'largest difference of the outputs to the dense model' in text
    assert 'did not fit' not in text
    densify(str(config), str(tmp_path / 'moe.pth'), str(tmp_path / 'back.pth'), expert=['1'])
    found = torch.load(tmp_path / 'back.pth', weights_only=True)['state_dict']
    expected = torch.load(dense[1], weights_only=True)['state_dict']
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=lambda text, key=key: f'{key}: {text}')


def test_linear_layers_of_a_box_head_there_and_back_again(tmp_path, capsys):
    plain = write_config(tmp_path / 'dense.py', None, FASTER)
    torch.save({'state_dict': spread_weights(model_of(plain)).state_dict()}, tmp_path / 'dense.pth')
    linear = {'modules': 'roi_head.bbox_head.shared_fcs.*', 'type': 'MoELinear', 'num_experts': 3, 'top_k': 2}
    config = write_config(tmp_path / 'moe.py', [linear], FASTER)
    upcycle(str(config), str(tmp_path / 'dense.pth'), str(tmp_path / 'moe.pth'), noise=0)
    assert 'did not fit' not in capsys.readouterr().out
    densify(str(config), str(tmp_path / 'moe.pth'), str(tmp_path / 'back.pth'), expert=['2'])
    found = torch.load(tmp_path / 'back.pth', weights_only=True)['state_dict']
    expected = torch.load(tmp_path / 'dense.pth', weights_only=True)['state_dict']
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    one = write_config(tmp_path / 'one.py', [{**linear, 'top_k': 1}], FASTER)
    cost, dense_cost = (model_cost(load_config(path).model, (64, 64)) for path in (one, plain))
    assert cost.experts == 'unconstrained, 1 of 3 per roi'
    # of a region: 32 channels of 7 x 7 to 128 twice, scores of 4 classes, 3 boxes, and two gates of three experts
    of_region = 32 * 49 * 128 + 128 * 128 + 128 * (4 + 3 * 4)
    gates = 3 * (32 * 49 + 128)
    assert dense_cost.parts['roi_head'].active_macs % of_region == 0  # how many regions there are is by chance
    assert cost.parts['roi_head'].active_macs % (of_region + gates) == 0


def test_a_dense_model_of_one_expert_predicts_what_the_forced_expert_does(dense, tmp_path):
    config = write_config(tmp_path / 'moe.py', [COPIES])
    upcycle(str(config), str(dense[1]), str(tmp_path / 'moe.pth'), noise=0.5)
    densify(str(config), str(tmp_path / 'moe.pth'), str(tmp_path / 'back.pth'), expert=['2'])
    model = model_of(config, tmp_path / 'moe.pth')
    with intervene(model, {path: Intervention(forced=2) for path in find_routers(model)}):
        expected = predictions_of(model, batch())
    found = predictions_of(model_of(dense[0], tmp_path / 'back.pth'), batch())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores)


def test_every_place_knows_its_entry(tmp_path):
    encoder = {**COPIES, 'modules': 'encoder.layers.*.ffn'}
    config = write_config(tmp_path / 'moe.py', [COPIES, encoder, CONVS])
    cfg = load_config(config)
    places = expert_places(model_of(config))
    entries = {place.label: keys_of(place, moe_keys(cfg.model)).path for place in places}
    assert entries['decoder.layers.1.ffn'] == 'experts.0'
    assert entries['encoder.layers.0.ffn'] == 'experts.1'
    assert entries['backbone.layer4.2.conv2'] == 'experts.2'
    assert [place.kind for place in places].count(FFN) == 4


def test_pruning_changes_the_entry(dense, tmp_path):
    config = write_config(tmp_path / 'moe.py', [COPIES])
    upcycle(str(config), str(dense[1]), str(tmp_path / 'moe.pth'))
    drop = [f'decoder.layers.{i}.ffn=0' for i in range(2)]
    options = prune_experts(
        str(config), str(tmp_path / 'moe.pth'), str(tmp_path / 'pruned.pth'), drop=drop, evaluate=False
    )
    assert options[0] == 'model.experts.0.num_experts=2'
    cfg = load_config(config, options)
    assert cfg.model.experts[0].num_experts == 2


def test_cost_counts_the_experts_that_run(tmp_path):
    plain = model_cost(load_config(write_config(tmp_path / 'dense.py', None)).model, (64, 64))
    one = {**COPIES, 'top_k': 1}
    for experts, factor in ((one, 1), (COPIES, 2)):
        cost = model_cost(load_config(write_config(tmp_path / 'moe.py', [experts])).model, (64, 64))
        ours, theirs = cost.parts['decoder'], plain.parts['decoder']
        # 2 layers, 20 queries, two linear layers 32 x 256
        tokens = 2 * 20
        ffn = tokens * 2 * 32 * 256
        mixing = tokens * 32 * factor if factor > 1 else 0
        gate = tokens * 32 * 3
        assert ours.active_macs == theirs.active_macs + (factor - 1) * ffn + mixing + gate
        assert cost.experts == f'unconstrained, {factor} of 3 per token'
