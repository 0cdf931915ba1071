"""Records of routing rows, and the numbers made of summed usage."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from moe_det.routing import (
    GAPLinearGate,
    KLConstraint,
    Router,
    RoutingRecorder,
    Usage,
    UsageRecorder,
    find_routers,
    rows_of,
    utilisation,
)


class Network(nn.Module):
    """A head that decides for two levels at once, and a neck layer that is called once per level."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Module()
        self.head.routers = nn.ModuleDict({'cls': Router(GAPLinearGate(2, 3), top_k=2, unit='patch')})
        self.neck = nn.Module()
        self.neck.router = Router(GAPLinearGate(2, 3), [KLConstraint()], top_k=1, balance_over='level', num_levels=2)

    def forward(self, maps):
        for level in maps:
            self.neck.router(*rows_of([level], 'level', 1, self.neck.router.next_level()))
        return self.head.routers['cls'](*rows_of(maps, 'patch', 2))


MAPS = [torch.randn(2, 2, 4, 4), torch.randn(2, 2, 1, 2)]


def test_routers_are_found_by_the_path_of_their_layer():
    assert set(find_routers(Network())) == {'head.cls', 'neck'}


def test_records_of_rows():
    network = Network().eval()
    with RoutingRecorder(network) as recorder:
        for ids in ([7, 9], [4, 4]):
            recorder.start_batch(ids)
            routing = network(MAPS)
    network(MAPS)  # nobody listens any more
    assert [record.layer for record in recorder.records] == ['neck', 'neck', 'head.cls'] * 2
    first, second, head = recorder.records[:3]
    assert first.image_ids.tolist() == second.image_ids.tolist() == [7, 9]
    assert first.levels.tolist() == [0, 0]
    assert second.levels.tolist() == [1, 1]  # the layer's second call in the batch
    assert recorder.records[3].levels.tolist() == [0, 0]  # and its first in the next batch
    assert first.patches.tolist() == [0, 0]
    # 2 x 2 patches on level 0, 1 x 2 on level 1
    assert head.image_ids.tolist() == [7] * 4 + [9] * 4 + [7] * 2 + [9] * 2
    assert head.levels.tolist() == [0] * 8 + [1] * 4
    assert head.patches.tolist() == [0, 1, 2, 3] * 2 + [0, 1] * 2

    head = recorder.records[5]
    assert head.weights.shape == head.probs.shape == (12, 3)
    torch.testing.assert_close(head.probs, torch.softmax(routing.logits, 1))
    for row in range(12):
        expected = torch.zeros(3)
        for expert, weight in zip(routing.indices[row], routing.weights[row], strict=True):
            expected[expert] = weight
        torch.testing.assert_close(head.weights[row], expected)
    assert not head.weights.requires_grad


@pytest.mark.parametrize('over', ['all', 'level'])
def test_levels_of_a_layer_that_is_called_once_per_level(over):
    # recorded whatever balance the layer has, and from 0 in each batch, also after a forward that nobody recorded
    router = Router(GAPLinearGate(2, 3), top_k=1, balance_over=over, num_levels=3).eval()
    layer = nn.ModuleDict({'neck': nn.ModuleDict({'router': router})})
    router(*rows_of([MAPS[0]], 'level', 1, router.next_level()))
    with RoutingRecorder(layer) as recorder:
        for _ in range(2):
            recorder.start_batch([1, 2])
            for _ in range(3):
                router(*rows_of([MAPS[0]], 'level', 1, router.next_level()))
    assert [record.levels.tolist() for record in recorder.records] == [[0, 0], [1, 1], [2, 2]] * 2


def test_an_image_without_a_name_is_refused():
    network = Network().eval()
    with RoutingRecorder(network) as recorder:
        recorder.start_batch([7])
        with pytest.raises(ValueError, match='the batch has 2 images, start_batch\\(\\) named 1'):
            network(MAPS)


def test_recorders_detach_after_an_error():
    network = Network()
    with pytest.raises(KeyError), RoutingRecorder(network):
        assert all(router.decided for router in find_routers(network).values())
        raise KeyError('elsewhere')
    assert all(not router.decided for router in find_routers(network).values())


def test_recorders_do_not_get_into_each_others_way():
    network = Network().eval()
    with UsageRecorder(network) as outer:
        with RoutingRecorder(network) as inner:
            inner.start_batch([7, 8])
            network(MAPS)
        network(MAPS)
    assert [len(record.weights) for record in inner.records] == [2, 2, 12]
    assert {layer: int(used.rows.sum()) for layer, used in outer.usage.items()} == {'neck': 2 * 4, 'head.cls': 2 * 12}


def test_usage_recorder_sums_batches():
    network = Network().eval()
    with UsageRecorder(network) as recorder:
        network(MAPS)
        network([m[:1] for m in MAPS])
    usage = recorder.usage['head.cls']
    assert usage.rows.tolist() == [12 + 6]
    assert usage.load.sum() == 2 * 18
    assert usage.importance.sum().item() == pytest.approx(18)
    neck = recorder.usage['neck']  # two balance groups
    assert neck.load.shape == (2, 3)
    assert neck.rows.tolist() == [2 + 1] * 2


def usage_of(importance, load, probs, entropy, rows) -> Usage:
    return Usage(*(torch.tensor([x], dtype=torch.float64) for x in (importance, load, probs, entropy, rows)))


def test_utilisation_by_hand():
    # 8 rows, K = 2; mean probabilities (1/2, 1/4, 1/4, 0): H_u = .5 + .5 + .5 bits; H_s = 8 ln 2 / 8 = 1 bit
    usage = usage_of([4.96, 2.0, 1.0, 0.04], [8, 4, 3, 1], [4, 2, 2, 0], 8 * math.log(2), 8)
    measured = utilisation(usage)
    assert measured.importance_share == pytest.approx((0.62, 0.25, 0.125, 0.005))
    assert measured.load_ratio == pytest.approx((2, 1, 0.75, 0.25))  # 16 choices, 4 are fair
    assert measured.living == 3  # .005 is not more than 1 %
    assert measured.row_entropy == pytest.approx(1)
    assert measured.batch_entropy == pytest.approx(1.5)
    assert measured.rows == 8
    assert json.loads(json.dumps(measured.to_dict()))['load_ratio'] == pytest.approx([2, 1, 0.75, 0.25])


def test_groups_are_summed():
    counts = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    halves = Usage(counts, counts, counts, torch.zeros(2), torch.tensor([1.0, 3.0]))
    assert utilisation(halves).importance_share == pytest.approx((0.25, 0.75))
    assert utilisation(halves).rows == 4


@pytest.mark.parametrize('living', [1, 2, 3])
def test_living_experts(living):
    importance = [8 / living] * living + [0] * (4 - living)
    assert utilisation(usage_of(importance, importance, importance, 0.0, 8)).living == living


def test_no_rows_cannot_be_measured():
    with pytest.raises(ValueError, match='no routing rows'):
        utilisation(usage_of([0, 0], [0, 0], [0, 0], 0.0, 0))
