"""Replayed and exchanged decisions in whole detectors, against the natural routing and against exchanged logits."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from small_models import as_truth, batch, detector, objects, spread_weights

from moe_det.probing.conditions import Condition, all_swapped, levels_shifted, routed, swapped
from moe_det.probing.layer_description import layer_infos
from moe_det.probing.probe import Probe
from moe_det.probing.swaps import LEVEL_DRAWS, expert_sets, swap_conditions, swap_donors
from moe_det.routing import find_routers
from moe_det.routing.intervention import Intervention, intervene
from moe_det.routing.route_table import RouteTable

MOE = dict(num_experts=3, top_k=2, constraint=dict(type='KLConstraint', weight=0.25))
SIZES = [(64, 96), (96, 64), (64, 64), (96, 96)]
TURN = [1, 2, 3, 0]  # donor of each image
SHARDS = dict(placement='shards', shards=2, copies=3, constraint=MOE['constraint'])
CONV = dict(conv_cfg=dict(type='MoEConv2d', num_levels=5, **MOE))

MODELS = {
    'level': dict(moe=MOE),
    'image': dict(moe=dict(MOE, unit='image')),
    'patch': dict(moe=dict(MOE, unit='patch', grid=2)),
    'one expert of each row': dict(moe=dict(MOE, top_k=1)),
    'one of a patch': dict(moe=dict(MOE, top_k=1, unit='patch', grid=3)),
    'tower': dict(moe=dict(MOE, placement='tower')),
    'one gate for both branches': dict(moe=dict(MOE, shared_gate=True)),
    'shared expert, all run': dict(moe=dict(MOE, shared_expert=True, dispatch='all')),
    'attentive': dict(moe=dict(MOE, gate=dict(type='AttentiveGate', hidden_channels=8), noise=False)),
    'masks of a hard constraint': dict(moe=dict(MOE, constraint=dict(type='SelectionBiasConstraint'))),
    'shards': dict(moe=SHARDS),
    'shards of a patch': dict(moe=dict(SHARDS, unit='patch', grid=2)),
    'called once per level': dict(bbox_head=CONV),
    'backbone': dict(backbone=dict(type='MoEResNet', moe=dict(stages=(2, 3), **MOE))),
    'backbone and head': dict(moe=MOE, backbone=dict(type='MoEResNet', moe=dict(stages=(3,), **MOE))),
}


def model_of(place):
    torch.manual_seed(0)
    model = spread_weights(detector(**MODELS[place])).eval()
    model.bbox_head.test_cfg.score_thr = 0.3
    for router in find_routers(model).values():  # so that images and levels differ in what they choose
        for parameter in router.gate.parameters():
            parameter.data *= 2
    return model


def probed(model, conditions=(), **more):
    grids = {info.name: info.grid for info in layer_infos(model) if info.grid}
    truths = [as_truth(objects(image, size, 2), 2 * image) for image, size in enumerate(SIZES)]
    return Probe(model, conditions, grids, **more)(range(len(SIZES)), batch(SIZES), truths)


def own_routes(layer, slots=1):
    return RouteTable(layer.weights, layer.image_ids, layer.levels, layer.patches, slots=slots)


def close(a, b):
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-3)


@contextlib.contextmanager
def exchanged_logits(model, layer, donor):
    """The layer's gate gives each image the logits of its donor in the same call."""

    def exchange(_, __, logits):
        return logits.unflatten(0, (len(donor), -1))[list(donor)].flatten(0, 1)

    handle = find_routers(model)[layer].gate.register_forward_hook(exchange)
    yield
    handle.remove()


@pytest.mark.parametrize('place', MODELS)
def test_to_replay_every_rows_own_decision_changes_nothing(place):
    model = model_of(place)
    natural = probed(model)
    slots = {name: router.slots for name, router in find_routers(model).items()}
    tables = {name: Intervention(routes=own_routes(layer, slots[name])) for name, layer in natural.layers.items()}
    conditions = [Condition(name, {name: table}) for name, table in tables.items()]
    found = probed(model, [*conditions, Condition('all', tables)], rows=False)
    assert len(natural.detections) > 5
    for name in found.conditions:
        assert close(found.conditions[name], natural.detections), name


@pytest.mark.parametrize('place', MODELS)
def test_to_take_a_donors_decisions_is_to_take_its_logits(place):
    model = model_of(place)
    natural = probed(model)
    infos = layer_infos(model)
    donor = np.array(TURN)
    conditions = []
    for info in infos:
        layer = natural.layers[info.name]
        row_of = {row: n for n, row in enumerate(zip(layer.image_ids, layer.levels, layer.patches, strict=True))}
        places = zip(donor[layer.image_ids], layer.levels, layer.patches, strict=True)
        table = own_routes(layer, info.slots).taking(np.array([row_of[row] for row in places]))
        conditions.append(Condition(info.name, {info.name: Intervention(routes=table)}))
    found = probed(model, conditions, rows=False)
    different = 0
    for info in infos:
        with exchanged_logits(model, info.name, TURN):
            expected = probed(model).detections
        assert close(found.conditions[info.name], expected), info.name
        different += not close(expected, natural.detections)
    assert different


@pytest.mark.parametrize('place', ['level', 'image', 'patch', 'shards', 'called once per level', 'backbone and head'])
def test_conditions_of_the_second_pass(place):
    model = model_of(place)
    natural, infos = probed(model), layer_infos(model)
    counts = np.full(len(SIZES), 2)
    donors = swap_donors(natural, infos, counts, 3, 5)
    assert donors.shape == (3, 4) and (donors != np.arange(4)).all() and (np.sort(donors, axis=1) == np.arange(4)).all()
    conditions = swap_conditions(natural, infos, donors, 5)
    names = {condition.name for condition in conditions}
    several = [info for info in infos if natural.layers[info.name].levels.max() > 0]
    assert [bool(several), len(several)] == [place != 'image', 0 if place == 'image' else 2]
    expected = {swapped(info.name, d) for info in infos for d in range(3)} | {all_swapped(d) for d in range(3)}
    expected |= {levels_shifted(info.name, d) for info in several for d in range(LEVEL_DRAWS)}
    routes = {1: [(0, 1), (0, 2), (1, 2)], 2: [(a, b) for a in (0, 1, 2) for b in (3, 4, 5)]}
    expected |= {routed(info.name, pair) for info in infos for pair in routes[info.slots]}
    assert names == expected and len(conditions) == len(expected)
    found = probed(model, conditions, rows=False)
    assert close(found.detections, natural.detections)
    assert found.losses.keys() == {'natural'} | {c.name for c in conditions if '/route/' in c.name}
    for draw in range(3):
        for info in infos:
            with exchanged_logits(model, info.name, donors[draw].tolist()):
                assert close(found.conditions[swapped(info.name, draw)], probed(model).detections)
    for info in infos:
        for pair in routes[info.slots][-2:]:
            with intervene(model, {info.name: Intervention(forced=pair)}):
                assert close(found.conditions[routed(info.name, pair)], probed(model).detections)


def test_shifted_levels_are_levels_of_the_same_image():
    model = model_of('patch')
    natural, infos = probed(model), layer_infos(model)
    donors = swap_donors(natural, infos, np.full(4, 2), 2, 0)
    conditions = {c.name: c for c in swap_conditions(natural, infos, donors, 0)}
    name = infos[0].name
    layer = natural.layers[name]
    shifts = set()
    for draw in range(2):
        table = conditions[levels_shifted(name, draw)].interventions[name].routes
        for image in range(4):
            table.start_batch([image])
            own = np.flatnonzero(layer.image_ids == image)
            indices, log_weights = table.next_call(torch.zeros(len(own), 3))
            given = torch.zeros(len(own), 4).scatter(1, indices, log_weights.exp())[:, :3].numpy()
            order = own[np.lexsort((layer.patches[own], layer.levels[own]))]
            levels = layer.levels[order]
            fits = []
            for shift in range(1, 5):
                ok = True
                for level in range(5):
                    there = layer.weights[order[levels == (level + shift) % 5]]
                    ok &= all(np.isclose(row, there, atol=1e-6).all(1).any() for row in given[levels == level])
                if ok:
                    fits.append(shift)
            assert fits
            shifts.update(fits)
    assert len(shifts) > 1


def test_images_without_a_donor_keep_their_detections():
    model = model_of('level')
    natural, infos = probed(model), layer_infos(model)
    groups = ['video', 'video', 'video', 'other']
    (donors,) = every = swap_donors(natural, infos, np.full(4, 2), 1, 0, groups)
    assert (donors == -1).sum() == 2 and donors[3] in (0, 1, 2) and donors[donors[3]] == 3
    found = probed(model, swap_conditions(natural, infos, every, 0), rows=False)
    swap = found.conditions[all_swapped(0)]
    for image in range(4):
        own = natural.detections[natural.detections[:, 0] == image]
        assert close(swap[swap[:, 0] == image], own) == (donors[image] == -1)


def test_experts_of_the_head_run_once_for_all_draws():
    model = model_of('level')
    natural, infos = probed(model), layer_infos(model)
    conditions = swap_conditions(natural, infos, swap_donors(natural, infos, np.full(4, 2), 5, 0), 0)
    calls = []
    for group in model.bbox_head.branch_experts.values():
        for expert in group.experts:
            expert.register_forward_hook(lambda *_: calls.append(1))
    backbone = []
    model.backbone.register_forward_hook(lambda *_: backbone.append(1))
    probed(model, conditions, rows=False)
    assert len(calls) == 2 * 3 * 5 and len(backbone) == 1  # branches, experts, levels


def test_sets_of_experts():
    assert expert_sets(3, 1, 0) == [(0,), (1,), (2,)]
    assert expert_sets(6, 2, 0) == [(a, b) for a in range(6) for b in range(a + 1, 6)]
    drawn = expert_sets(8, 3, 1)
    assert math.comb(8, 3) > 16 == len(set(drawn)) and drawn == expert_sets(8, 3, 1)
    assert all(len(set(chosen)) == 3 and sorted(chosen) == list(chosen) and max(chosen) < 8 for chosen in drawn)
    # with shards one copy of each: 4 x 4 routes, of 5 x 5 a sample
    assert expert_sets(8, 2, 0, 2) == [(a, b) for a in range(4) for b in range(4, 8)]
    drawn = expert_sets(10, 2, 1, 2)
    assert len(set(drawn)) == 16 and all(a < 5 <= b < 10 for a, b in drawn)


def test_images_with_other_rows_do_not_exchange():
    """A layer that saw larger images in one batch than in another has more patches there."""
    natural = probed(model_of('patch'))
    infos = layer_infos(model_of('patch'))
    for layer in natural.layers.values():
        keep = ~((layer.image_ids < 2) & (layer.patches == 3))
        for field in ('image_ids', 'levels', 'patches', 'weights'):
            setattr(layer, field, getattr(layer, field)[keep])
    donors = swap_donors(natural, infos, np.array([1, 9, 2, 0]), 4, 0)
    assert (donors == [1, 0, 3, 2]).all()
    assert swap_conditions(natural, infos, donors, 0)
