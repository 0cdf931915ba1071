"""Experts by image cluster: rows stay in the group of their cluster, and use is balanced inside the groups."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from moe_det.errors import CheckpointError, DataError
from moe_det.layers import MoESettings
from moe_det.routing import ClusterMask, KLConstraint, RelativeImportanceConstraint, Router, rows_of
from moe_det.routing.gates import GAPLinearGate
from moe_det.routing.intervention import Intervention, intervene

CENTROIDS = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # two directions
IMAGES = torch.tensor([[3.0, 1.0], [0.1, 5.0], [0.2, 0.1], [1.0, 1.5]])
CLUSTERS = [0, 1, 0, 1]


def mask() -> ClusterMask:
    made = ClusterMask(clusters=2, channels=2)
    made.fill(CENTROIDS)
    return made


def router(*more, num_experts: int = 4, top_k: int = 1, unit: str = 'level', slots: int = 1, **options) -> Router:
    torch.manual_seed(0)
    gate = GAPLinearGate(3, num_experts)
    made = Router(gate, [mask(), *more], top_k=top_k, unit=unit, slots=slots, **options)
    made.constraints['cluster'].see(IMAGES)
    return made


def rows(unit: str = 'level', grid: int = 1, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return rows_of([5 * torch.randn(4, 3, s, s, generator=generator) for s in (4, 2)], unit, grid)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(('unit', 'grid'), [('level', 1), ('image', 1), ('patch', 2)])
@pytest.mark.parametrize('top_k', [1, 2])
def test_a_row_gets_experts_of_its_clusters_group_alone(training, unit, grid, top_k):
    made = router(unit=unit, top_k=top_k).train(training)
    for seed in range(3):
        given, layout = rows(unit, grid, seed)
        routing = made(given, layout)
        made.start_step()
        expected = torch.tensor(CLUSTERS)[layout.images()]
        assert torch.equal(routing.indices // 2, expected[:, None].expand(-1, top_k))
        inside = routing.probs.unflatten(1, (2, 2)).sum(2)[torch.arange(len(expected)), expected]
        torch.testing.assert_close(inside, torch.ones(len(expected)))
        # the softmax of the group's own two logits
        own = made.gate_logits(given, layout).unflatten(1, (2, 2))[torch.arange(len(expected)), expected]
        weights = own.softmax(1) if top_k == 2 else own.softmax(1).amax(1, keepdim=True)
        torch.testing.assert_close(routing.weights, weights.sort(descending=True).values)


def test_slots_divide_their_copies_among_the_clusters():
    routing = router(num_experts=8, top_k=2, slots=2)(*rows())  # copies 0 1 | 2 3 of each slot
    clusters = torch.tensor(CLUSTERS * 2)
    assert torch.equal(routing.indices[:, 0] // 2, clusters)
    assert torch.equal((routing.indices[:, 1] - 4) // 2, clusters)


def test_a_hard_constraint_that_forbids_a_whole_group_leads_nobody_out_of_it():
    made = router(RelativeImportanceConstraint(), top_k=2).train()
    made.constraints['relative_importance'].relative += torch.tensor([[9.0, 9.0, -9.0, -9.0]])
    routing = made(*rows())
    assert torch.equal(routing.indices // 2, torch.tensor(CLUSTERS * 2)[:, None].expand(-1, 2))


def test_an_expert_of_another_group_can_be_forced_to_see_what_it_does():
    made = router(top_k=2).eval()
    with intervene(made, {'': Intervention(forced=3)}):
        routing = made(*rows())
    assert torch.equal(routing.indices, torch.full((8, 1), 3)) and torch.allclose(routing.weights, torch.ones(8, 1))


def published_balance(logits: Tensor) -> Tensor:
    """The public code's: squared deviation of the mean over the chosen experts of their softmax from 1/k."""
    return (logits.topk(2).values.softmax(1).mean(1) - 0.5).square().sum()


def test_balance_is_that_inside_the_groups_and_has_a_gradient():
    made = router(KLConstraint(weight=1.0), top_k=2, noise=False).double().train()
    given, layout = rows()
    given = [x.double() for x in given]
    routing = made(given, layout)
    loss = made.collect()['kl']
    importance = routing.over_experts(routing.weights, 0.0).sum(0).detach()
    by_group = importance.view(2, 2)
    mass = by_group.sum(1) / importance.sum()
    inside = sum(float(m * sum(p * math.log(2 * p) for p in g / g.sum())) for m, g in zip(mass, by_group, strict=True))
    between = float(sum(m * math.log(2 * m) for m in mass))
    assert loss.item() == pytest.approx(inside + between)
    assert between == pytest.approx(0)  # two images in each cluster
    loss.backward()
    assert made.gate.fc.weight.grad.abs().max() > 1e-3

    made.zero_grad()
    published_balance(made.gate_logits(given, layout)).backward()
    assert made.gate.fc.weight.grad.abs().max() < 1e-12


def test_balance_inside_a_group_by_hand():
    # cluster 0 has the logits (log 3, 0) twice: importances 1.5 and 0.5; cluster 1 is even: 1 and 1
    made = router(KLConstraint(weight=1.0), top_k=2, noise=False).train()
    logits = torch.tensor([[math.log(3), 0.0, 9.0, 9.0], [7.0, 1.0, 2.0, 2.0]] * 2)
    made.gate.forward = lambda feature, keys=None: logits
    routing = made(*rows_of([torch.zeros(4, 3, 2, 2)], 'level'))
    torch.testing.assert_close(routing.over_experts(routing.weights, 0.0).sum(0), torch.tensor([1.5, 0.5, 1.0, 1.0]))
    assert made.collect()['kl'].item() == pytest.approx(0.5 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))


def test_centroids_come_from_a_file_or_a_checkpoint(tmp_path):
    file = tmp_path / 'clusters.json'
    lacking = ClusterMask(2, 2, str(file))
    lacking.see(IMAGES)
    layout = rows()[1]
    with pytest.raises(CheckpointError, match="clusters.json is not there, and no checkpoint.*'moe-det cluster'"):
        lacking.clusters(layout)
    file.write_text(json.dumps({'centroids': CENTROIDS.tolist()}))
    from_file = ClusterMask(2, 2, str(file))
    assert torch.equal(from_file.centroids, torch.eye(2))  # of length 1
    lacking.load_state_dict(from_file.state_dict())
    lacking.see(IMAGES)
    assert lacking.clusters(layout).tolist() == CLUSTERS * 2


@pytest.mark.parametrize('text', ['', '{}', '{"centroids": 1}', '{"centroids": [[1, 2]]}', '{"centroids": [["a"]]}'])
def test_a_file_without_centroids_is_one_message(tmp_path, text):
    file = tmp_path / 'clusters.json'
    file.write_text(text)
    with pytest.raises(DataError, match='clusters.json: expected JSON with "centroids"'):
        ClusterMask(2, 2, str(file))


def test_wrong_numbers_are_one_message(tmp_path):
    with pytest.raises(DataError, match='has 2 clusters of 2 channels, the config clusters=4 and channels=2'):
        ClusterMask(4, 2).fill(CENTROIDS)
    with pytest.raises(ValueError, match='clusters=0: expected an integer >= 1'):
        ClusterMask(0)
    for keys, message in (
        (dict(num_experts=5), 'num_experts=5 cannot be divided'),
        (dict(num_experts=4, top_k=3), 'top_k=3, and a group has 2 experts'),
    ):
        settings = MoESettings(**{'top_k': 1, **keys}, constraint=dict(type='ClusterMask', clusters=2, channels=2))
        with pytest.raises(ValueError, match=message):
            settings.build_router(3, 'bbox_head.moe')


def test_images_whose_features_nobody_told_are_one_message():
    made = router()
    made.constraints['cluster'].see(IMAGES[:1])
    with pytest.raises(ValueError, match="4 images are routed, and the features of 1 .*type='WithClusters'"):
        made(*rows())
