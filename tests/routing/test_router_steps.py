"""One step, one balance: what a router keeps between its calls and the collection of its constraints."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn

from moe_det.errors import UncollectedConstraintError
from moe_det.routing import (
    ImportanceConstraint,
    KLConstraint,
    MeanImportanceConstraint,
    RelativeImportanceConstraint,
    Router,
    RoutingRecorder,
    SelectionBiasConstraint,
)
from moe_det.routing.step import MAX_PENDING_CALLS

EXACT = {'rtol': 1e-12, 'atol': 1e-12}
MIXED = (KLConstraint, ImportanceConstraint, RelativeImportanceConstraint)


@pytest.fixture
def router(echo_gate) -> Router:
    """Three experts, K = 2, soft and hard constraints, no noise."""
    kinds = [kind() for kind in MIXED]
    return Router(echo_gate(3, 3), kinds, top_k=2, label='bbox_head.moe.cls').double().train()


def state(router: Router) -> torch.Tensor:
    return router.constraints['relative_importance'].relative


def test_a_step_of_five_calls_is_balanced_as_one(router, routing_from, as_maps, route_rows):
    parts = [torch.randn(rows, 3, dtype=torch.float64) for rows in (4, 3, 1, 2, 5)]
    for logits in parts:
        route_rows(router, as_maps(logits))
    losses = router.collect()
    whole = routing_from(torch.cat(parts) * router.gate.scale, 2)
    importance = whole.weights.detach().new_zeros(3)
    for row, weights in zip(whole.indices, whole.weights.detach(), strict=True):
        importance[row] += weights
    # CV^2 with the unbiased variance; KL of the shares from uniform; (I - mean) / mean
    expected = 0.5 * importance.var() / importance.mean() ** 2
    torch.testing.assert_close(losses['importance'], expected, check_dtype=False)
    share = importance / importance.sum()
    torch.testing.assert_close(losses['kl'], 0.25 * (share * (3 * share).log()).sum())
    torch.testing.assert_close(state(router)[0], (importance - importance.mean()) / importance.mean())

    gradient = torch.autograd.grad(losses['kl'], router.gate.scale)[0]
    expected = torch.autograd.grad(KLConstraint().loss(whole), router.gate.scale)[0]
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient, expected, **EXACT)


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1), (2, 1, 0)])
def test_the_order_of_constraints_does_not_matter(order, echo_gate, as_maps, route_rows):
    # a hard constraint's update runs without gradient; a soft one after it must keep its own
    logits = torch.randn(6, 3)
    results = []
    for kinds in (MIXED, [MIXED[i] for i in order]):
        router = Router(echo_gate(3, 3), [kind() for kind in kinds], top_k=2, noise=False).double().train()
        route_rows(router, as_maps(logits))
        losses = router.collect()
        gradient = torch.autograd.grad(losses['kl'] + 2 * losses['importance'], router.gate.scale)[0]
        results.append((losses['kl'], losses['importance'], state(router), gradient))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, **EXACT)
        assert first.abs().max() > 0


def test_each_step_starts_empty(router, as_maps, route_rows):
    logits = torch.randn(4, 3, dtype=torch.float64)
    values = []
    for _ in range(2):
        route_rows(router, as_maps(logits))
        values.append(router.collect()['importance'].item())
        state(router).zero_()
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    empty = router.collect()  # a step without rows
    assert all(torch.isfinite(loss) and loss == 0 for loss in empty.values())


def test_start_step_drops_what_belongs_to_no_step(router, as_maps, route_rows):
    route_rows(router, as_maps([[5.0, 0.0, -5.0]] * 7))
    router.start_step()
    logits = torch.randn(4, 3, dtype=torch.float64)
    route_rows(router, as_maps(logits))
    value = router.collect()['kl'].item()
    state(router).zero_()
    route_rows(router, as_maps(logits))
    assert value == pytest.approx(router.collect()['kl'].item(), abs=1e-12)


@pytest.mark.parametrize('constraint', [KLConstraint, RelativeImportanceConstraint, SelectionBiasConstraint])
def test_a_backward_before_the_collection_is_refused(constraint, echo_gate, as_maps, route_rows):
    router = Router(echo_gate(3, 3), [constraint()], top_k=2, label='neck.conv.moe').double().train()
    route_rows(router, as_maps(torch.randn(2, 3)))
    router.collect()
    routing = route_rows(router, as_maps(torch.randn(2, 3)))
    with pytest.raises(UncollectedConstraintError) as error:
        (routing.weights * torch.randn(2, 2)).sum().backward()
    message = str(error.value)
    assert 'neck.conv.moe' in message
    assert constraint.__name__ in message
    assert "custom_hooks = [dict(type='MoEHook')]" in message
    # collected in time, the same backward is fine
    router.start_step()
    routing = route_rows(router, as_maps(torch.randn(2, 3)))
    router.collect()
    (routing.weights * torch.randn(2, 2)).sum().backward()


def test_a_step_that_never_ends_is_refused(router, echo_gate, as_maps, route_rows):
    # a frozen gate has no backward of its own to notice
    router.gate.requires_grad_(False)
    maps = as_maps(torch.randn(1, 3))
    for _ in range(MAX_PENDING_CALLS):
        route_rows(router, maps)
    with pytest.raises(UncollectedConstraintError, match='bbox_head.moe.cls'):
        route_rows(router, maps)
    watched = Router(echo_gate(3, 3), top_k=2).double().train()
    steps = []
    watched.collected.observe(steps.append)  # statistics alone are no reason to stop
    for _ in range(MAX_PENDING_CALLS + 1):
        route_rows(watched, maps)
    assert watched.collect() == {}
    assert steps[0].rows.item() <= MAX_PENDING_CALLS


@pytest.mark.parametrize('noise', [False, True])
@pytest.mark.parametrize(('constrained', 'training'), [(True, False), (False, True), (False, False)])
def test_nothing_is_kept_in_evaluation_or_without_constraints(constrained, training, noise, echo_gate, route_rows):
    constraints = [KLConstraint()] if constrained else []
    router = Router(echo_gate(3, 3), constraints, top_k=2, noise=noise).train(training).double()
    maps = torch.randn(2, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    references = []
    for _ in range(3):
        routing = route_rows(router, maps * 1.0)
        references += [weakref.ref(routing), weakref.ref(routing.logits), weakref.ref(routing.log_weights)]
    del routing
    assert not any(reference() is not None for reference in references)  # and no cycle waits for the collector
    assert router.collect() == {}


def test_a_collected_step_is_released(router, as_maps, route_rows):
    routing = route_rows(router, as_maps(torch.randn(2, 3)))
    reference = weakref.ref(routing.logits)
    sum(router.collect().values()).backward()
    del routing
    route_rows(router, as_maps(torch.randn(2, 3)))
    assert reference() is None


def test_a_model_can_be_copied_and_pickled_in_the_middle_of_a_step(router, as_maps, route_rows):
    model = nn.Sequential(nn.Conv2d(3, 3, 1).double(), router)
    model[1].collected.observe(lambda usage: None)
    with RoutingRecorder(model) as recorder:
        recorder.start_batch(range(4))
        route_rows(model[1], model[0](as_maps(torch.randn(4, 3))))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            for name, value in model.state_dict().items():
                assert torch.equal(value, twin.state_dict()[name])
            losses = twin[1].collect()  # the copy starts a step of its own
            assert all(loss == 0 for loss in losses.values())
            assert not twin[1].decided and not twin[1].collected
    assert model[1].collect()['kl'] > 0  # and the original goes on


def test_a_recorder_does_not_change_the_losses_gradient(router, as_maps, route_rows):
    logits = torch.randn(4, 3)

    def gradient() -> torch.Tensor:
        state(router).zero_()
        route_rows(router, as_maps(logits))
        return torch.autograd.grad(sum(router.collect().values()), router.gate.scale)[0]

    expected = gradient()
    assert expected.abs().max() > 0
    with RoutingRecorder(router) as recorder:
        recorder.start_batch(range(4))
        assert torch.equal(gradient(), expected)


def test_usage_by_hand(router, as_maps, route_rows):
    # exp(logits) = (1, 2, 4): kept 4 and 2 -> weights 2/3, 1/3; p = (1, 2, 4)/7
    logits = torch.tensor([[1.0, 2, 4], [4, 1, 2]]).log()
    usage = route_rows(router, as_maps(logits)).local_usage()
    router.start_step()
    assert usage.importance[0].tolist() == pytest.approx([2 / 3, 1 / 3, 1])
    assert usage.load.tolist() == [[1, 1, 2]]
    assert usage.probs[0].tolist() == pytest.approx([5 / 7, 3 / 7, 6 / 7])
    assert usage.rows.tolist() == [2]


def test_observers_are_told_of_the_usage_of_every_step_until_they_leave(router, as_maps, route_rows):
    steps = []
    handle = router.collected.observe(steps.append)
    for rows in (2, 3, 4):
        if rows == 4:
            handle.remove()
        route_rows(router, as_maps(torch.randn(rows, 3)))
        router.collect()
    assert [usage.rows.tolist() for usage in steps] == [[2], [3]]
    both = steps[0] + steps[1]
    assert both.load.sum() <= 10  # *no expert* counts for nobody
    assert both.importance.sum().item() == pytest.approx(5)
    assert not both.importance.requires_grad


def test_balance_groups(echo_gate):
    def build(**settings) -> Router:
        return Router(echo_gate(3, 3), [KLConstraint()], top_k=2, num_levels=5, **settings)

    assert build().num_groups == 1
    assert build(balance_over='level').num_groups == 5
    assert build(balance_over='level', unit='patch').num_groups == 5
    assert build(balance_over='level', unit='image').num_groups == 1


def test_balance_inside_levels_sees_a_fixed_level_map(echo_gate, as_maps, route_rows):
    # level 0 -> expert 0, level 1 -> expert 1: balanced over all levels, as unbalanced as can be inside each
    values = {}
    for over in ('all', 'level'):
        router = (
            Router(echo_gate(2, 2), [KLConstraint(1.0)], top_k=1, balance_over=over, num_levels=2, noise=False)
            .double()
            .train()
        )
        for _ in range(2):  # levels are counted anew in each step
            route_rows(router, as_maps([[40.0, 0.0]] * 3))
            route_rows(router, as_maps([[0.0, 40.0]] * 3))
            values[over] = router.collect()['kl'].item()
    assert values['all'] == pytest.approx(0, abs=1e-9)
    assert values['level'] == pytest.approx(torch.tensor(2.0).log().item())


def test_levels_are_counted_anew_in_each_step(echo_gate, as_maps, route_rows):
    constraint = MeanImportanceConstraint()
    router = Router(echo_gate(2, 2), [constraint], top_k=1, balance_over='level', num_levels=3).double()
    maps = as_maps([[1.0, 0.0]])
    for _ in range(2):  # an interrupted step: one level less than there are
        route_rows(router.train(), maps)
    router.start_step()
    for level in range(3):
        assert router.next_level() == level
        route_rows(router, maps)
    router.collect()
    assert constraint.steps.tolist() == [1, 1, 1]


def test_a_router_that_is_moved_leaves_unfinished_steps_behind_and_takes_usage_along(router, as_maps, route_rows):
    router.start_step(optimizer_follows=False)
    logits = torch.randn(6, 3, dtype=torch.float64)
    route_rows(router, as_maps(logits))
    router.collect()  # a step that ends with a later forward
    before = copy.deepcopy(router.step.waiting)
    route_rows(router, as_maps(torch.randn(5, 3, dtype=torch.float64)))  # never collected
    router.to('cpu')
    assert all(torch.equal(value, vars(before)[name]) for name, value in vars(router.step.waiting).items())
    route_rows(router, as_maps(logits))
    assert router.collect() and router.step.waiting.rows.tolist() == [12]
    router.to('meta')  # stands for another device
    assert {value.device.type for value in vars(router.step.waiting).values()} == {'meta'}
