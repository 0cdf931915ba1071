"""The attentive gate against its equation, row by row and expert by expert in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from moe_det.routing import (
    AttentiveGate,
    ConvGAPGate,
    ExpertGroup,
    GAPLinearGate,
    KLConstraint,
    Router,
    mix_linear,
    rows_of,
)
from moe_det.routing.intervention import Intervention, intervene

HIDDEN = 5


class Expert(nn.Module):
    """Four features, and two channels predicted from them."""

    gives_features = True

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Conv2d(3, 4, 3, padding=1)
        self.predictor = nn.Conv2d(4, 2, 1)
        self.runs = 0

    def forward(self, x: Tensor, with_features: bool = False):
        self.runs += 1
        features = self.tower(x).tanh()
        output = self.predictor(features)
        return (output, features) if with_features else output


class Mixture(nn.Module):
    """Three experts under an attentive gate, as a model in which interventions find a layer."""

    def __init__(self, top_k: int, unit: str = 'level', constraints=()) -> None:
        super().__init__()
        gate = AttentiveGate(3, 3, key_channels=4, hidden_channels=HIDDEN)
        self.router = Router(gate, constraints, top_k=top_k, unit=unit, noise=False)
        self.group = ExpertGroup([Expert() for _ in range(3)])
        self.double()

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        rows, layout = rows_of(maps, self.router.unit, 2)
        return self.group.run_and_route(rows, self.router, rows, layout)


def reference(model: Mixture, maps: list[Tensor], keys_of=lambda h: h, outputs_of=lambda y: y) -> list[Tensor]:
    """The equation, one row at a time; ``keys_of`` and ``outputs_of`` may block a path of the gradient."""
    gate, unit, top_k = model.router.gate, model.router.unit, model.router.top_k
    rows, _ = rows_of(maps, unit, 2)

    def logits_of(x: Tensor, features: list[Tensor]) -> Tensor:
        g = gate.query.fc.weight @ x.mean((1, 2)) + gate.query.fc.bias
        q = gate.to_query.weight @ g
        keys = [gate.to_key.weight @ keys_of(h.mean((1, 2))) for h in features]
        return torch.stack([q @ k / math.sqrt(HIDDEN) for k in keys])

    computed = [[[e(x[None], with_features=True) for e in model.group.experts] for x in level] for level in rows]
    logits = [
        [logits_of(x, [h[0] for _, h in of_row]) for x, of_row in zip(level, of_level, strict=True)]
        for level, of_level in zip(rows, computed, strict=True)
    ]
    if unit == 'image':
        logits = [[sum(of_image) / len(rows) for of_image in zip(*logits, strict=True)]] * len(rows)
    mixed = []
    for of_level, logits_of_level in zip(computed, logits, strict=True):
        lines = []
        for of_row, h in zip(of_level, logits_of_level, strict=True):
            chosen = sorted(range(3), key=lambda e: -h[e])[:top_k]
            weights = h[chosen].softmax(0) if top_k > 1 else h.softmax(0)[chosen]
            lines.append(sum(w * outputs_of(of_row[e][0][0]) for w, e in zip(weights, chosen, strict=True)))
        mixed.append(torch.stack(lines))
    return mixed


def maps_of(*sizes: int) -> list[Tensor]:
    return [3 * torch.randn(4, 3, size, size, dtype=torch.float64) + 1 for size in sizes]


def gradients(model: Mixture, outputs: list[Tensor]) -> dict[str, Tensor]:
    total = sum((y * torch.sin(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)).sum() for y in outputs)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total, parameters, materialize_grads=True), strict=True))


@pytest.mark.parametrize('top_k', [1, 2, 3])
@pytest.mark.parametrize('unit', ['level', 'image', 'patch'])
def test_outputs_and_gradients(unit, top_k):
    model, maps = Mixture(top_k, unit), maps_of(4, 2)
    ours, theirs = model(maps), reference(model, maps)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for name, expected in gradients(model, theirs).items():
        torch.testing.assert_close(gradients(model, model(maps))[name], expected, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize('top_k', [2, 3])
def test_experts_learn_through_their_keys_and_their_outputs(top_k):
    model, maps = Mixture(top_k), maps_of(4)
    whole = gradients(model, model(maps))
    without_keys = gradients(model, reference(model, maps, keys_of=Tensor.detach))
    without_outputs = gradients(model, reference(model, maps, outputs_of=Tensor.detach))
    for expert in range(3):
        name = f'group.experts.{expert}.tower.weight'
        assert without_keys[name].abs().max() > 1e-4 and without_outputs[name].abs().max() > 1e-4
        torch.testing.assert_close(whole[name], without_keys[name] + without_outputs[name], rtol=1e-9, atol=1e-12)
        # an expert's key is part of its tower alone
        assert without_outputs[f'group.experts.{expert}.predictor.weight'].abs().max() == 0
    assert whole['router.gate.to_key.weight'].abs().max() > 1e-4


def test_every_expert_runs_once_and_the_gate_decides_differently_when_an_expert_changes():
    model, maps = Mixture(1).eval(), maps_of(4)
    logits = []
    model.router.decided.observe(lambda routing, layout: logits.append(routing.logits.detach()))
    model(maps)
    assert [expert.runs for expert in model.group.experts] == [1, 1, 1]
    with torch.no_grad():
        model.group.experts[1].tower.bias += 1
    model(maps)
    changed = (logits[1] - logits[0]).abs().amax(0)
    assert changed[1] > 1e-3 and changed[0] == changed[2] == 0


def test_interventions():
    model, maps = Mixture(2).eval(), maps_of(4)
    own = model(maps)[0]
    for expert in range(3):
        with intervene(model, {'router': Intervention(forced=expert)}):
            torch.testing.assert_close(model(maps)[0], model.group.experts[expert](maps[0]))
    with intervene(model, {'router': Intervention(knocked_out=0)}):
        without = model(maps)[0]
    keys = torch.stack([e(maps[0], with_features=True)[1].mean((2, 3)) for e in model.group.experts], 1)
    weights = model.router.gate(maps[0], keys)[:, 1:].softmax(1)
    expected = sum(weights[:, i, None, None, None] * model.group.experts[i + 1](maps[0]) for i in range(2))
    torch.testing.assert_close(without, expected)
    assert not torch.allclose(without, own)


def test_a_constraint_balances_it():
    model = Mixture(2, constraints=[KLConstraint()]).train()
    model(maps_of(4))
    loss = model.router.collect()['kl']
    loss.backward()
    assert loss > 0
    assert all(expert.tower.weight.grad.abs().max() > 0 for expert in model.group.experts)


def test_a_layer_without_features_is_known_by_its_output():
    gate = AttentiveGate(3, 2, key_channels=2, hidden_channels=HIDDEN)
    group = ExpertGroup([nn.Conv2d(3, 2, 1) for _ in range(2)], nn.Conv2d(3, 2, 1))
    router, maps = Router(gate, top_k=2).eval(), [torch.randn(4, 3, 5, 5)]
    rows, layout = rows_of(maps, 'level')
    outputs = torch.stack([expert(maps[0]) for expert in group.experts], 1)
    log_weights = gate(maps[0], outputs.mean((3, 4))).log_softmax(1)
    expected = mix_linear(outputs, log_weights) + group.shared(maps[0])
    torch.testing.assert_close(group.run_and_route(rows, router, rows, layout)[0], expected)


def test_the_query_network_is_any_gate_with_h_outputs():
    query = ConvGAPGate(3, 7, hidden_channels=2)
    gate = AttentiveGate(3, 4, key_channels=2, hidden_channels=7, query=query)
    feature, keys = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 2)
    q, k = query(feature) @ gate.to_query.weight.t(), keys @ gate.to_key.weight.t()
    torch.testing.assert_close(gate(feature, keys), (q[:, None] * k).sum(2) / math.sqrt(7))
    assert 'query.fc.weight' in gate.state_dict() and 'to_key.bias' not in gate.state_dict()
    with pytest.raises(ValueError, match='query has 4 outputs, expected hidden_channels=7'):
        AttentiveGate(3, 4, key_channels=2, hidden_channels=7, query=GAPLinearGate(3, 4))
    with pytest.raises(ValueError, match='hidden_channels=0'):
        AttentiveGate(3, 4, key_channels=2, hidden_channels=0)
    with pytest.raises(ValueError, match='expected keys'):
        gate(feature)
