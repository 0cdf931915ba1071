"""Fitting a plain gate to an attentive one: what is learnt, what stays, and what inference costs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from moe_det.errors import CheckpointError
from moe_det.routing import (
    AttentiveGate,
    ConvGAPGate,
    DistilledGate,
    ExpertGroup,
    GAPLinearGate,
    Router,
    finish_distillation,
    plan_dispatch,
    rows_of,
    train_gates_alone,
)


class CountingExpert(nn.Module):
    """A convolution with a norm; counts the rows that it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.norm(self.conv(x))


class Model(nn.Module):
    """Four experts under any gate, as a layer runs them."""

    def __init__(self, gate, top_k: int = 2) -> None:
        super().__init__()
        self.router = Router(gate, top_k=top_k, noise=None)
        self.group = ExpertGroup([CountingExpert() for _ in range(4)])
        if gate.freezes_experts:
            self.group.freeze()

    def forward(self, x: Tensor, dispatch: str = 'sorted') -> Tensor:
        rows, layout = rows_of([x], 'level')
        if self.router.needs_keys:
            return self.group.run_and_route(rows, self.router, rows, layout)[0]
        routing = self.router(rows, layout)
        self.group.dispatch = dispatch
        return self.group(rows, routing, layout, plan_dispatch([routing], layout.level_rows)[0])[0]


def attentive() -> AttentiveGate:
    gate = AttentiveGate(3, 4, key_channels=2, hidden_channels=6)
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    return gate


def distilled(**settings) -> tuple[Model, Model]:
    """A model with an attentive gate, and one that starts from its checkpoint."""
    taught = Model(attentive(), top_k=4).eval()
    model = Model(DistilledGate(3, 4, 2, AttentiveGate(3, 4, 2, 6), **settings))
    model.router.gate.has_trained_teacher = False
    model.load_state_dict(taught.state_dict())
    return taught, model.train()


def teacher_probs(taught: Model, x: Tensor) -> Tensor:
    keys = torch.stack([expert(x).mean((2, 3)) for expert in taught.group.experts], 1)
    return taught.router.gate(x, keys).softmax(1)


def test_the_loss_is_the_divergence_from_the_attentive_gate():
    taught, model = distilled(kl_weight=0.5)
    x = torch.randn(5, 3, 6, 6)
    model(x)
    found = model.router.collect()['distillation']
    expected = 0.0
    for p, q in zip(teacher_probs(taught, x).tolist(), model.router.gate.student(x).softmax(1).tolist(), strict=True):
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 5
    assert expected > 0.02
    assert found.item() == pytest.approx(0.5 * expected, rel=1e-5)
    gradient = torch.autograd.grad(found, model.router.gate.student.fc.weight)[0]
    assert gradient.abs().max() > 1e-4


def test_the_divergence_vanishes_where_both_decide_alike():
    model = Model(DistilledGate(3, 4, 2, attentive())).train()
    for parameter in (*model.router.gate.teacher.to_key.parameters(), *model.router.gate.student.parameters()):
        nn.init.zeros_(parameter)
    model(torch.randn(5, 3, 6, 6))
    loss = model.router.collect()['distillation']
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert model.router.gate.student.fc.weight.grad.abs().max() < 1e-6


@pytest.mark.parametrize('kl_weight', [1.0, 0.0])
def test_only_the_student_changes_and_it_learns(kl_weight):
    taught, model = distilled(kl_weight=kl_weight)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(32, 3, 6, 6) + 2 * torch.randn(32, 3, 1, 1)
    # the task: to give what the attentive mixture gave
    target = taught(x).detach()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    errors = []
    for _ in range(60):
        task = (model(x) - target).square().mean()
        losses = model.router.collect()
        assert set(losses) == ({'distillation'} if kl_weight else set())
        optimizer.zero_grad()
        (task + sum(losses.values())).backward()
        optimizer.step()
        errors.append(task.item())
    assert errors[-1] < 0.8 * errors[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {'router.gate.student.fc.weight', 'router.gate.student.fc.bias'}
    # experts and norms are those of the checkpoint
    for name, value in taught.group.state_dict().items():
        assert torch.equal(value, model.group.state_dict()[name]), name


@pytest.mark.parametrize('top_k', [1, 2])
def test_inference_runs_k_experts_per_row_and_equals_dense(top_k):
    _, model = distilled()
    model.router.top_k = top_k
    model.eval()
    x = torch.randn(9, 3, 6, 6)
    for expert in model.group.experts:
        expert.rows = 0
    sparse = model(x)
    assert sum(expert.rows for expert in model.group.experts) == 9 * top_k
    torch.testing.assert_close(sparse, model(x, dispatch='all'))
    # and training with the KL runs all of them
    for expert in model.group.experts:
        expert.rows = 0
    model.train()(x)
    model.router.collect()
    assert [expert.rows for expert in model.group.experts] == [9] * 4


def test_training_without_the_divergence_runs_k_experts():
    _, model = distilled(kl_weight=0.0)
    model(torch.randn(9, 3, 6, 6))
    assert sum(expert.rows for expert in model.group.experts) == 18


def test_training_decides_as_evaluation_does():
    _, model = distilled()
    x = torch.randn(9, 3, 6, 6)
    trained = model(x)
    model.router.collect()
    torch.testing.assert_close(trained, model.eval()(x))


def test_the_result_is_a_plain_model_either_way():
    _, model = distilled()
    x = torch.randn(9, 3, 6, 6)
    expected = model.eval()(x)
    plain = Model(GAPLinearGate(3, 4)).eval()
    assert not plain.load_state_dict(copy.deepcopy(model.state_dict())).missing_keys
    torch.testing.assert_close(plain(x), expected)
    finish_distillation(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not model.router.constraints and not model.router.constraints.asked
    torch.testing.assert_close(model(x), expected)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters()) and model.group.experts[0].norm.training


def test_the_teacher_of_a_distilled_checkpoint_can_be_taken_back():
    taught, model = distilled()
    again = Model(attentive(), top_k=2)
    again.load_state_dict(model.state_dict())
    for name, value in taught.router.gate.state_dict().items():
        assert torch.equal(value, again.router.gate.state_dict()[name]), name


def test_distillation_resumes():
    _, model = distilled()
    nn.init.ones_(model.router.gate.student.fc.bias)
    resumed = Model(DistilledGate(3, 4, 2, AttentiveGate(3, 4, 2, 6)))
    resumed.router.gate.has_trained_teacher = False
    resumed.load_state_dict(model.state_dict())
    resumed.train()(torch.randn(2, 3, 6, 6))
    assert resumed.router.gate.student.fc.bias.tolist() == [1] * 4


def test_the_students_body_starts_from_the_query_network():
    def query(outputs: int) -> ConvGAPGate:
        return ConvGAPGate(3, outputs, hidden_channels=5)

    for hidden in (6, 4):  # 4 outputs are as many as there are experts: the last layer stays fresh all the same
        taught = AttentiveGate(3, 4, 2, hidden, query(hidden))
        gate = DistilledGate(3, 4, 2, AttentiveGate(3, 4, 2, hidden, query(hidden)), query(4))
        fresh = gate.student.fc.weight.clone()
        gate.load_state_dict(taught.state_dict())
        assert torch.equal(gate.student.conv.weight, taught.query.conv.weight)
        assert torch.equal(gate.student.fc.weight, fresh)
        assert torch.equal(gate.teacher.to_key.weight, taught.to_key.weight)


def test_a_source_that_is_not_attentive_is_refused():
    plain = Model(GAPLinearGate(3, 4)).state_dict()
    model = Model(DistilledGate(3, 4, 2))
    with pytest.raises(CheckpointError, match='plain gate at router.gate: DistilledGate needs .* AttentiveGate'):
        model.load_state_dict(plain, strict=False)
    with pytest.raises(CheckpointError, match='DistilledGate has no trained teacher: set load_from'):
        model.train()(torch.randn(2, 3, 6, 6))
    five = {'router.experts_and_k': torch.tensor([5, 2])}
    with pytest.raises(CheckpointError, match='num_experts=5'):
        model.load_state_dict(five, strict=False)


def test_gates_alone():
    _, model = distilled()
    whole = nn.Sequential(nn.Conv2d(3, 3, 1), model)
    train_gates_alone(whole)
    trained = {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert trained == {'1.router.gate.student.fc.weight', '1.router.gate.student.fc.bias'}


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'kl_weight': -1}, 'kl_weight=-1'),
        ({'teacher': GAPLinearGate(3, 4)}, 'teacher is a GAPLinearGate, expected an AttentiveGate'),
        ({'student': AttentiveGate(3, 4, 2)}, 'student is a AttentiveGate, expected a plain gate'),
    ],
)
def test_bad_values(settings, message):
    with pytest.raises(ValueError, match=message):
        DistilledGate(3, 4, 2, **settings)
