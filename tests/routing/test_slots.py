"""Slots: every row runs one expert of each, against one plain choice per slot and sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from moe_det.routing import (
    EntropyConstraint,
    ExpertGroup,
    GAPLinearGate,
    ImportanceConstraint,
    KLConstraint,
    MeanImportanceConstraint,
    RelativeImportanceConstraint,
    Router,
    Routing,
    RowSamples,
    SampleSimilarityConstraint,
    SelectionBiasConstraint,
    SwitchConstraint,
    ZLossConstraint,
    plan_dispatch,
    rows_of,
    select,
)

INF = float('inf')
EXACT = {'rtol': 1e-12, 'atol': 1e-12}


def routing_in(logits: torch.Tensor, slots: int) -> Routing:
    indices, log_weights = select(logits, logits.detach(), slots, True, slots, True)
    groups = torch.zeros(len(logits), dtype=torch.long)
    return Routing(logits, indices, log_weights, True, groups, 1, slots=slots)


def choice_of_each_slot(logits: list[float], forbidden: list[bool], slots: int) -> list[int]:
    """Best allowed expert of each slot, the first of equal ones; any where a slot has none that is allowed."""
    copies, chosen = len(logits) // slots, []
    for slot in range(slots):
        experts = range(slot * copies, (slot + 1) * copies)
        allowed = [e for e in experts if not forbidden[e]] or list(experts)
        chosen.append(max(allowed, key=lambda e: (logits[e], -e)))
    return chosen


@pytest.mark.parametrize(('slots', 'copies'), [(1, 4), (2, 1), (2, 4), (3, 2), (4, 8)])
def test_one_expert_of_each_slot_in_their_order(slots, copies):
    logits = torch.randint(-2, 3, (60, slots * copies)).double()  # with ties
    mask = torch.rand(60, slots * copies) < 0.5  # also whole slots
    indices, log_weights = select(logits, logits.masked_fill(mask, -INF), slots, True, slots, True)
    rows = zip(logits.tolist(), mask.tolist(), strict=True)
    assert indices.tolist() == [choice_of_each_slot(*row, slots) for row in rows]
    assert (log_weights == 0).all()


def test_the_gradient_of_a_weight_is_that_of_its_probability_among_the_allowed():
    # slot 0: p = (1, 2)/3 as its last expert is forbidden, expert 1 chosen; slot 1: p = (5, 3, 2)/10, expert 3 chosen
    logits = torch.tensor([[1.0, 2, 9, 5, 3, 2]], dtype=torch.float64).log().requires_grad_()
    allowed = logits.detach().clone()
    allowed[0, 2] = -INF
    indices, log_weights = select(logits, allowed, 2, True, 2)
    assert indices.tolist() == [[1, 3]]
    (log_weights * torch.tensor([1.0, 10.0])).sum().backward()
    expected = [-2 / 3 * 1 / 3, 2 / 3 * 1 / 3, 0, *(10 * 0.5 * (i - p) for i, p in ((1, 0.5), (0, 0.3), (0, 0.2)))]
    torch.testing.assert_close(logits.grad, torch.tensor([expected], dtype=torch.float64), **EXACT)


def test_probabilities_are_those_of_the_slots_over_their_number():
    logits = torch.tensor([[1.0, 3, 2, 2]]).log()
    torch.testing.assert_close(routing_in(logits, 2).probs, torch.tensor([[1 / 8, 3 / 8, 1 / 4, 1 / 4]]))


def layer(dispatch: str = 'sorted') -> tuple[Router, ExpertGroup]:
    torch.manual_seed(3)
    gate = GAPLinearGate(3, 6)
    nn.init.normal_(gate.fc.weight, std=3)
    experts = [nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()) for _ in range(6)]
    return Router(gate, top_k=2, slots=2).double(), ExpertGroup(experts, dispatch=dispatch, slots=2).double()


def maps_of_two_levels() -> list[torch.Tensor]:
    torch.manual_seed(4)
    return [torch.randn(5, 3, 4, 3, dtype=torch.float64), torch.randn(5, 3, 2, 2, dtype=torch.float64)]


@pytest.mark.parametrize('dispatch', ['sorted', 'all'])
@pytest.mark.parametrize('unit', ['level', 'image'])
def test_a_layer_adds_the_chosen_experts_and_the_gate_learns_from_each(dispatch, unit, run_layer):
    router, group = layer(dispatch)
    maps = maps_of_two_levels()
    outputs = run_layer(router.train(), group.train(), maps, unit)
    weights = [torch.randn_like(y) for y in outputs]
    sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    gradients = [p.grad.clone() for p in [*router.parameters(), *group.parameters()]]

    router.zero_grad(), group.zero_grad()
    logits = [router.gate(x) for x in maps]
    if unit == 'image':
        logits = [sum(logits) / 2] * 2
    total, chosen = 0, set()
    for x, z, w, y in zip(maps, logits, weights, outputs, strict=True):
        for row in range(len(x)):
            expected = 0
            for slot in range(2):
                probs = z[row, 3 * slot : 3 * slot + 3].softmax(0)
                best = int(probs.argmax())
                chosen.add(3 * slot + best)
                straight = 1 + probs[best] - probs[best].detach()
                expected = expected + straight * group.experts[3 * slot + best](x[row : row + 1])[0]
            torch.testing.assert_close(y[row], expected, **EXACT)
            total = total + (expected * w[row]).sum()
    assert len(chosen) > 3
    total.backward()
    for parameter, gradient in zip([*router.parameters(), *group.parameters()], gradients, strict=True):
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradient, expected, **EXACT)


def test_without_a_router_every_slot_adds_its_only_expert():
    experts = [nn.Conv2d(2, 3, 1) for _ in range(3)]
    x = torch.randn(2, 2, 4, 4)
    (y,) = ExpertGroup(experts, slots=3)([x], None, None)
    torch.testing.assert_close(y, experts[0](x) + experts[1](x) + experts[2](x))


def test_a_plan_holds_the_choices_of_its_level():
    logits = torch.randn(7, 6)
    routing = routing_in(logits, 2)
    first, second = plan_dispatch([routing], (3, 4))[0]
    assert np.array_equal(first.choices, routing.indices[:3].numpy())
    assert np.array_equal(second.choices, routing.indices[3:].numpy())


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'top_k': 1, 'slots': 2}, 'slots=2: expected top_k=2'),
        ({'top_k': 4, 'slots': 4}, 'slots=4: .*num_experts=6'),
        ({'top_k': 2, 'weighting': 'straight_through'}, 'top_k=2, expected 1'),
        ({'top_k': 1, 'weighting': 'hard'}, "weighting='hard': expected one of softmax, straight_through"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, words, echo_gate):
    with pytest.raises(ValueError, match=words):
        Router(echo_gate(6, 6), **arguments)


# -- constraints ------------------------------------------------------------------------------------------------


def of_each_slot(logits: torch.Tensor, slots: int) -> list[Routing]:
    """The same choices, as of layers that have one slot each."""
    return [routing_in(part, 1) for part in logits.chunk(slots, dim=1)]


def with_samples(routing: Routing) -> Routing:
    images = torch.arange(len(routing.logits))
    torch.manual_seed(5)
    routing.samples = RowSamples(images, len(images), torch.randn(len(images), 4, dtype=torch.float64))
    return routing


@pytest.mark.parametrize(
    'constraint',
    [
        KLConstraint(1.0),
        SwitchConstraint(1.0),
        EntropyConstraint(1.0),
        ZLossConstraint(1.0),
        SampleSimilarityConstraint(),
        ImportanceConstraint(1.0),
    ],
    ids=lambda constraint: constraint.key,
)
def test_a_balance_is_the_mean_of_the_balances_in_slots(constraint):
    logits = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    loss = constraint.loss(with_samples(routing_in(logits, 2)))
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = sum(constraint.loss(with_samples(part)) for part in of_each_slot(logits, 2)) / 2
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(gradient, expected_gradient, **EXACT)
    assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize('kind', [RelativeImportanceConstraint, MeanImportanceConstraint, SelectionBiasConstraint])
def test_hard_constraints_act_in_each_slot_as_in_a_layer_of_its_own(kind):
    together, alone = kind(), [kind(), kind()]
    together.slots = 2
    together.prepare(8, 1)
    for one in alone:
        one.prepare(4, 1)
    moved = False
    for step in range(30):
        torch.manual_seed(step)
        logits = torch.randn(16, 8) + torch.tensor([2.0, 0, 0, 0, 0, 0, 0, 0])
        groups = torch.zeros(16, dtype=torch.long)
        expected = torch.cat(
            [one.mask(part, groups) for one, part in zip(alone, logits.chunk(2, 1), strict=True)], dim=1
        )
        masked = together.mask(logits, groups)
        torch.testing.assert_close(masked, expected)
        moved = moved or not torch.equal(masked, logits)
        indices, log_weights = select(logits, masked, 2, True, 2)
        together.update(Routing(logits, indices, log_weights, True, groups, 1, slots=2))
        for slot, one in enumerate(alone):
            part = (indices[:, slot : slot + 1] - 4 * slot, log_weights[:, slot : slot + 1])
            one.update(Routing(logits[:, 4 * slot : 4 * slot + 4], *part, True, groups, 1))
    assert moved


@pytest.mark.parametrize(
    ('kind', 'name', 'expected'),
    [
        (RelativeImportanceConstraint, 'relative', [0.1, -0.1, -0.05, 0.05]),
        (MeanImportanceConstraint, 'mean', [0.375, 0.125, 0.125, 0.375]),
    ],
)
def test_dropping_experts_leaves_each_slot_the_state_of_its_own(kind, name, expected):
    constraint = kind()
    constraint.slots = 2
    constraint.prepare(4, 1)
    getattr(constraint, name).copy_(torch.tensor([[0.3, 0.1, 0.05, 0.15]]))
    if name == 'mean':
        constraint.steps += 1
    constraint.after_dropping_experts()
    torch.testing.assert_close(getattr(constraint, name), torch.tensor([expected]))


def test_a_router_tells_its_constraints_and_keeps_its_slots_in_use(echo_gate):
    # every row prefers copy 0 of slot 0 and copy 1 of slot 1; the constraint sends them elsewhere in turn
    constraint = RelativeImportanceConstraint()
    router = Router(echo_gate(6, 6), [constraint], top_k=2, slots=2).train()
    rows, layout = rows_of([torch.tensor([[3.0, 2, 1, 1, 3, 2]] * 8)[:, :, None, None]], 'level')
    load = torch.zeros(6)
    for _ in range(60):
        load += router(rows, layout).usage.load[0]
        router.collect()
    assert constraint.slots == 2
    assert load.view(2, 3).sum(1).tolist() == [480, 480]
    assert (load / 160 > 0.8).all()
