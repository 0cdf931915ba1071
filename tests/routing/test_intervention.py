"""Forcing and knocking out experts, changing K and replaying decisions, against routings worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from moe_det.routing.gates import Gate
from moe_det.routing.intervention import Intervention, intervene
from moe_det.routing.route_table import RouteTable
from moe_det.routing.router import Router
from moe_det.routing.rows import rows_of

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])


class FixedGate(Gate):
    """Returns the logits that it was given."""

    def __init__(self) -> None:
        super().__init__(1, 3)
        self.unused = nn.Parameter(torch.zeros(1))

    def logits(self, feature):
        return LOGITS[: len(feature)]


def route(router: Router):
    rows, layout = rows_of([torch.zeros(2, 1, 4, 4)], 'level')
    return router(rows, layout)


def model_with(top_k: int) -> nn.ModuleDict:
    return nn.ModuleDict({'layer': Router(FixedGate(), top_k=top_k)}).eval()


def weights(model: nn.Module, **changes) -> torch.Tensor:
    """Dense weights, under an intervention where changes are given."""
    with intervene(model, {'layer': Intervention(**changes)} if changes else {}):
        routing = route(model['layer'])
    return routing.over_experts(routing.weights, 0.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize('top_k', [1, 2])
@pytest.mark.parametrize(
    ('forced', 'shares'),
    [(0, [1, 0, 0]), (1, [0, 1, 0]), (2, [0, 0, 1]), ((0, 2), [0.5, 0, 0.5]), ((0, 1, 2), [1 / 3] * 3)],
)
def test_forced_experts_share_the_weight_equally_and_keep_the_scale_of_a_single_choice(forced, shares, top_k):
    scale = torch.softmax(LOGITS, 1).amax(1, keepdim=True) if top_k == 1 else torch.ones(2, 1)
    torch.testing.assert_close(weights(model_with(top_k), forced=forced), scale * torch.tensor(shares).float())


# rows of images 4, 7 and 9 at levels 0 and 1, each with one or two patches
ROWS = np.array([(4, 0, 0), (4, 0, 1), (4, 1, 0), (7, 0, 0), (7, 0, 1), (7, 1, 0), (9, 0, 0), (9, 0, 1), (9, 1, 0)])


def decisions(*numbers):
    """Tells rows apart: row n has weight n / 10 on expert 0 and the rest on expert 2, row 0 all on expert 1."""
    table = np.array([[n / 10, 0, 1 - n / 10] for n in range(len(ROWS))], dtype=np.float32)
    table[0] = [0, 1, 0]
    return table[list(numbers)] if numbers else table


def calls(table: RouteTable, *counts: int) -> list[np.ndarray]:
    """Dense weights of calls with so many rows."""
    found = []
    for count in counts:
        indices, log_weights = table.next_call(torch.zeros(count, 3))
        spread = torch.zeros(count, 4).scatter(1, indices, log_weights.exp())
        assert (indices == 3).eq(log_weights == -math.inf).all()
        found.append(spread[:, :3].numpy())
    return found


def test_replayed_decisions_come_level_by_level_then_image_by_image():
    shuffled = np.random.default_rng(0).permutation(len(ROWS))
    table = RouteTable(decisions()[shuffled], *ROWS[shuffled].T)
    table.start_batch([9, 4])
    (whole,) = calls(table, 6)
    np.testing.assert_allclose(whole, decisions(6, 7, 0, 1, 8, 2), rtol=1e-6)
    table.start_batch([9, 4])  # a layer that is called once per level
    for call, expected in zip(calls(table, 4, 2), ((6, 7, 0, 1), (8, 2)), strict=True):
        np.testing.assert_allclose(call, decisions(*expected), rtol=1e-6)
    table.start_batch([7])
    np.testing.assert_allclose(calls(table, 3)[0], decisions(3, 4, 5), rtol=1e-6)
    # best first, as the gate's own choices are
    table.start_batch([7])
    indices, log_weights = table.next_call(torch.zeros(3, 3))
    assert indices.tolist() == [[2, 0], [2, 0], [0, 2]]
    torch.testing.assert_close(log_weights.exp(), torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.5, 0.5]]))


def test_rows_that_take_other_rows_decisions():
    table = RouteTable(decisions(), *ROWS.T)
    taken = np.arange(len(ROWS))
    taken[:3], taken[6] = (6, 7, 8), 0
    other = table.taking(taken)
    other.start_batch([4, 9])
    table.start_batch([4, 9])
    np.testing.assert_allclose(calls(other, 6)[0], decisions(6, 7, 0, 7, 8, 8), rtol=1e-6)
    np.testing.assert_allclose(calls(table, 6)[0], decisions(0, 1, 6, 7, 2, 8), rtol=1e-6)


def test_a_table_that_does_not_fit_the_batch():
    table = RouteTable(decisions(), *ROWS.T)
    with pytest.raises(ValueError, match='start_batch'):
        calls(table, 1)
    table.start_batch([4])
    with pytest.raises(ValueError, match='asks for 4 decisions, 3 are left'):
        calls(table, 4)
    with pytest.raises(KeyError):
        table.start_batch([5])
    with pytest.raises(ValueError, match='two rows of the same image'):
        RouteTable(decisions(), *ROWS[[0, *range(8)]].T)


@pytest.mark.parametrize('top_k', [1, 2])
def test_replaying_in_a_layer_and_never_in_training(top_k):
    model = model_with(top_k)
    own = weights(model)
    given = np.array([[0.0, 0.25, 0.75], [0.5, 0.0, 0.0]], dtype=np.float32)
    table = RouteTable(given, np.arange(2), np.zeros(2, int), np.zeros(2, int))
    with intervene(model, {'layer': Intervention(routes=table)}):
        table.start_batch([1, 0])
        torch.testing.assert_close(weights(model), torch.from_numpy(given[::-1].copy()))
        model.train()
        torch.testing.assert_close(weights(model), own)
    table = RouteTable(own.numpy(), np.arange(2), np.zeros(2, int), np.zeros(2, int))
    model.eval()
    with intervene(model, {'layer': Intervention(routes=table)}):
        table.start_batch([0, 1])
        replayed = route(model['layer'])
    assert replayed.indices.tolist() == route(model['layer']).indices.tolist()
    torch.testing.assert_close(replayed.log_weights, route(model['layer']).log_weights)


@pytest.mark.parametrize(
    ('top_k', 'knocked_out', 'expected'),
    [
        (2, 0, [[0, sigmoid(1 - 0), sigmoid(0 - 1)], [0, sigmoid(3 - 1), sigmoid(1 - 3)]]),
        (3, 1, [[sigmoid(2), 0, sigmoid(-2)], [sigmoid(-1), 0, sigmoid(1)]]),
    ],
)
def test_knocked_out_expert_is_replaced_and_weights_are_normalised(top_k, knocked_out, expected):
    torch.testing.assert_close(weights(model_with(top_k), knocked_out=knocked_out), torch.tensor(expected))


@pytest.mark.parametrize('top_k', [1, 2, 3])
def test_other_k(top_k):
    order = LOGITS.argsort(1, descending=True)[:, :top_k]
    expected = torch.zeros(2, 3).scatter(1, order, torch.softmax(LOGITS.gather(1, order), 1))
    torch.testing.assert_close(weights(model_with(2), top_k=top_k), expected)


def test_own_routing_returns_afterwards_and_training_is_never_changed():
    model = model_with(2)
    before = weights(model)
    with pytest.raises(RuntimeError, match='stop'), intervene(model, {'layer': Intervention(forced=2)}):
        assert not torch.equal(weights(model), before)
        model.train()
        torch.testing.assert_close(weights(model), before)
        model.eval()
        raise RuntimeError('stop')
    torch.testing.assert_close(weights(model), before)


# -- slots: experts 0 to 2 are one, experts 3 to 5 the other; rows choose (0, 4) and (1, 3)

IN_SLOTS = torch.tensor([[2.0, 1.0, 0.0, 1.0, 3.0, 2.0], [0.0, 3.0, 1.0, 2.0, 0.0, 1.0]])


class SlotGate(FixedGate):
    """Returns the logits of two slots."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 6

    def logits(self, feature):
        return IN_SLOTS[: len(feature)]


def model_in_slots() -> nn.ModuleDict:
    return nn.ModuleDict({'layer': Router(SlotGate(), top_k=2, slots=2)}).eval()


@pytest.mark.parametrize(
    'intervention, rows',
    [
        (Intervention(), [{0: 1, 4: 1}, {1: 1, 3: 1}]),
        (Intervention(forced=2), [{2: 1, 4: 1}, {2: 1, 3: 1}]),
        (Intervention(forced=5), [{0: 1, 5: 1}, {1: 1, 5: 1}]),
        (Intervention(forced=(5, 1)), [{1: 1, 5: 1}] * 2),
        (Intervention(forced=(5, 3)), [{0: 1, 3: 0.5, 5: 0.5}, {1: 1, 3: 0.5, 5: 0.5}]),
        (Intervention(knocked_out=0), [{1: 1, 4: 1}, {1: 1, 3: 1}]),
        (Intervention(knocked_out=3), [{0: 1, 4: 1}, {1: 1, 5: 1}]),
    ],
)
def test_interventions_act_in_their_own_slot(intervention, rows):
    model = model_in_slots()
    with intervene(model, {'layer': intervention}):
        routing = route(model['layer'])
    expected = torch.zeros(2, 6)
    for row, of_row in enumerate(rows):
        for expert, weight in of_row.items():
            expected[row, expert] = weight
    torch.testing.assert_close(routing.over_experts(routing.weights, 0.0), expected)
    assert torch.equal(routing.indices, routing.indices.sort(1).values)  # slots, and experts in them, in order


def test_a_knocked_out_copy_does_not_come_back_when_constraints_forbid_the_others():
    # slot 0 has none left but the knocked-out copy 1: of the others the gate likes copy 2; slot 1 has none at all
    allowed = torch.tensor([[-math.inf, 1.0, -math.inf, -math.inf, -math.inf, -math.inf]])
    logits = torch.tensor([[0.0, 1.0, 0.5, 0.0, 2.0, 1.0]])
    indices, _ = Intervention(knocked_out=1).select(logits, allowed, 2, True, 2, True)
    assert indices.tolist() == [[2, 4]]


def test_replayed_choices_come_in_the_order_of_slots():
    model = model_in_slots()
    given = np.array([[0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 1]], np.float32)
    table = RouteTable(given, np.arange(2), np.zeros(2, int), np.zeros(2, int), slots=2)
    with intervene(model, {'layer': Intervention(routes=table)}):
        table.start_batch([0, 1])
        assert route(model['layer']).indices.tolist() == [[2, 3], [0, 5]]
    shared = np.array([[0, 0, 1, 0.4, 0, 0.6], [1, 0, 0, 0, 0, 1]], np.float32)
    table = RouteTable(shared, np.arange(2), np.zeros(2, int), np.zeros(2, int), slots=2)
    with intervene(model, {'layer': Intervention(routes=table)}):
        table.start_batch([0, 1])
        routing = route(model['layer'])
    assert routing.indices.tolist() == [[2, 3, 5], [0, 5, 6]]
    torch.testing.assert_close(routing.weights, torch.tensor([[1, 0.4, 0.6], [1, 1, 0]]))


@pytest.mark.parametrize(
    'intervention, words',
    [
        (Intervention(top_k=3), 'layer: top_k=3: a row runs one copy of each of 2 shards'),
        (Intervention(routes=RouteTable(np.eye(6), *np.zeros((3, 6), int) + np.arange(6))), 'in 1 slots .* with 2'),
        (Intervention(forced=6), 'forced=6: expected an expert from 0 to 5'),
    ],
)
def test_what_slots_cannot_do(intervention, words):
    with pytest.raises(ValueError, match=words), intervene(model_in_slots(), {'layer': intervention}):
        pass


def test_the_only_copy_of_a_slot_stays():
    with pytest.raises(ValueError, match='knocked_out=1: the only copy'):
        Intervention(knocked_out=1).check('layer', 2, slots=2)


FOUR = RouteTable(np.eye(4, dtype=np.float32), np.arange(4), np.zeros(4, int), np.zeros(4, int))


@pytest.mark.parametrize(
    'layer, intervention, error, words',
    [
        ('other', Intervention(forced=0), KeyError, 'layer'),
        ('layer', Intervention(forced=3), ValueError, 'forced=3: expected an expert from 0 to 2'),
        ('layer', Intervention(forced=(0, 3)), ValueError, 'forced=3: expected an expert from 0 to 2'),
        ('layer', Intervention(forced=(1, 1)), ValueError, 'several different ones'),
        ('layer', Intervention(forced=()), ValueError, 'expected one expert'),
        ('layer', Intervention(routes=FOUR), ValueError, 'routes of 4 experts for a layer with 3'),
        ('layer', Intervention(routes=FOUR, top_k=1), ValueError, 'give no forced'),
        ('layer', Intervention(knocked_out=-1), ValueError, 'knocked_out=-1'),
        ('layer', Intervention(top_k=4), ValueError, 'top_k=4: expected 1 to 3'),
    ],
)
def test_what_the_layer_does_not_have(layer, intervention, error, words):
    model = model_with(2)
    with pytest.raises(error, match=words), intervene(model, {layer: intervention}):
        pass
    assert model['layer'].intervention is None
