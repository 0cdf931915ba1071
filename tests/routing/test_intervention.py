"""Forcing and knocking out experts and changing K, against routings worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from moe_det.routing.gates import Gate
from moe_det.routing.intervention import Intervention, intervene
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


def weights(model: nn.Module) -> torch.Tensor:
    routing = route(model['layer'])
    return routing.dense(routing.weights, 0.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_forced_expert_has_all_weight_where_weights_sum_to_one():
    model = model_with(2)
    for expert in range(3):
        with intervene(model, {'layer': Intervention(forced=expert)}):
            found = weights(model)
        torch.testing.assert_close(found, torch.eye(3)[[expert, expert]])


def test_forced_expert_keeps_the_scale_of_a_single_choice():
    model = model_with(1)
    own = torch.softmax(LOGITS, 1).amax(1)
    with intervene(model, {'layer': Intervention(forced=2)}):
        found = weights(model)
    torch.testing.assert_close(found, own[:, None] * torch.tensor([[0.0, 0.0, 1.0]]))


def test_knocked_out_expert_is_replaced_and_weights_are_normalised():
    model = model_with(2)
    with intervene(model, {'layer': Intervention(knocked_out=0)}):
        found = weights(model)
    expected = [[0, sigmoid(1 - 0), sigmoid(0 - 1)], [0, sigmoid(3 - 1), sigmoid(1 - 3)]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_knocking_out_one_of_two_chosen_from_two():
    router = Router(FixedGate(), top_k=3)
    model = nn.ModuleDict({'layer': router}).eval()
    with intervene(model, {'layer': Intervention(knocked_out=1)}):
        found = weights(model)
    expected = [[sigmoid(2), 0, sigmoid(-2)], [sigmoid(-1), 0, sigmoid(1)]]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize('top_k', [1, 2, 3])
def test_other_k(top_k):
    model = model_with(2)
    with intervene(model, {'layer': Intervention(top_k=top_k)}):
        found = weights(model)
    order = LOGITS.argsort(1, descending=True)[:, :top_k]
    expected = torch.zeros(2, 3).scatter(1, order, torch.softmax(LOGITS.gather(1, order), 1))
    torch.testing.assert_close(found, expected)


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


@pytest.mark.parametrize(
    'layer, intervention, error, words',
    [
        ('other', Intervention(forced=0), KeyError, 'layer'),
        ('layer', Intervention(forced=3), ValueError, 'forced=3: expected an expert from 0 to 2'),
        ('layer', Intervention(knocked_out=-1), ValueError, 'knocked_out=-1'),
        ('layer', Intervention(top_k=4), ValueError, 'top_k=4: expected 1 to 3'),
    ],
)
def test_what_the_layer_does_not_have(layer, intervention, error, words):
    model = model_with(2)
    with pytest.raises(error, match=words), intervene(model, {layer: intervention}):
        pass
    assert model['layer'].intervention is None
