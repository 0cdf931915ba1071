"""What a schedule may change of a router acts in training alone, and leaves everything as it is at its usual value."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moe_det.routing import AttentiveGate, DistilledGate, GAPLinearGate, KLConstraint, Router, rows_of
from moe_det.routing.annealing import Annealing
from moe_det.routing.distillation import DistillationConstraint

VALUES = {'noise': 0.5, 'temperature': 3.0, 'balance': 0.25, 'top_k': 3}


def router_of(constraint: bool = True, top_k: int = 2, **arguments) -> Router:
    torch.manual_seed(1)
    gate = GAPLinearGate(3, 4)
    nn.init.normal_(gate.fc.weight, std=3)
    return Router(gate, [KLConstraint(1.0)] * constraint, top_k=top_k, **arguments).double()


def maps() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(6, 3, 4, 4, dtype=torch.float64)


def scheduled(router: Router, **values) -> Router:
    router.annealing = Annealing(**values)
    return router


def test_noise_is_scaled_and_logits_are_divided(route_rows):
    plain, x = router_of(), maps()
    noise = route_rows(plain.train(), x).logits - plain.gate(x)
    assert noise.abs().min() > 1e-4
    routing = route_rows(scheduled(router_of(), noise=0.25, temperature=2.0).train(), x)
    torch.testing.assert_close(routing.logits, (plain.gate(x) + 0.25 * noise) / 2)
    # the weights too: the softmax of the two largest
    kept = routing.logits.sort(1, descending=True).values[:, :2]
    torch.testing.assert_close(routing.weights, kept.softmax(1))


def test_without_noise_the_stream_of_draws_goes_on(route_rows):
    plain, quiet = router_of(), scheduled(router_of(), noise=0.0)
    x = maps()
    torch.testing.assert_close(route_rows(quiet.train(), x).logits, quiet.gate(x))
    route_rows(plain.train(), x)
    scheduled(quiet)
    assert torch.equal(route_rows(quiet, x).logits, route_rows(plain, x).logits)


def test_evaluation_knows_no_schedule(route_rows):
    routings = [route_rows(router.eval(), maps()) for router in (router_of(), scheduled(router_of(), **VALUES))]
    assert torch.equal(routings[0].logits, routings[1].logits)
    assert torch.equal(routings[0].indices, routings[1].indices)
    assert torch.equal(routings[0].log_weights, routings[1].log_weights)


def test_the_balance_is_scaled_and_a_teacher_is_not(route_rows):
    losses = []
    for router in (router_of(), scheduled(router_of(), balance=0.25)):
        route_rows(router.train(), maps())
        losses.append(router.collect()['kl'])
    torch.testing.assert_close(losses[1], 0.25 * losses[0])
    gate = DistilledGate(3, 4, 5, teacher=AttentiveGate(3, 4, 5))
    router = scheduled(Router(gate, [KLConstraint()], top_k=1, noise=False).train(), balance=0.0)
    rows, layout = rows_of([maps().float()], 'level')
    router(rows, layout, [torch.randn(6, 4, 5)])
    losses = router.collect()
    assert losses['kl'] == 0
    assert losses[DistillationConstraint.key] > 0


@pytest.mark.parametrize('training_top_k', [1, 3, 4])
def test_another_k_in_training(training_top_k, route_rows):
    # weights of two sum to one, and so they do for any other number; a single weight below one stays below
    routing = route_rows(scheduled(router_of(), top_k=training_top_k).train(), maps())
    assert routing.indices.shape == (6, training_top_k)
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(6, dtype=torch.float64))
    routing = route_rows(scheduled(router_of(top_k=1), top_k=training_top_k).train(), maps())
    expected = routing.probs.sort(1, descending=True).values[:, :training_top_k]
    torch.testing.assert_close(routing.weights, expected)


def test_weights_are_straight_through_when_the_schedule_has_come_to_one(route_rows):
    router = scheduled(router_of(top_k=1, weighting='straight_through'), top_k=2).train()
    routing = route_rows(router, maps())
    kept = routing.logits.sort(1, descending=True).values[:, :2]
    torch.testing.assert_close(routing.weights, kept.softmax(1))
    scheduled(router, top_k=1)
    assert (route_rows(router, maps()).weights == 1).all()


def test_slots_have_no_other_k(route_rows):
    router = scheduled(router_of(slots=2), top_k=3)
    route_rows(router.eval(), maps())
    with pytest.raises(ValueError, match='top_k=3 in training: a row runs one expert per slot'):
        route_rows(router.train(), maps())


@pytest.mark.parametrize('reentrant', [False, True])
@pytest.mark.parametrize('arguments', [{}, {'slots': 2}])
def test_a_repeated_forward_decides_under_the_same_schedule(arguments, reentrant):
    results = []
    values = {name: value for name, value in VALUES.items() if name != 'top_k' or not arguments}
    for repeat in (False, True):
        router = scheduled(router_of(**arguments), **values).train()

        def forward(x, router=router):
            return router(*rows_of([x], 'level')).log_weights

        x = maps().requires_grad_()
        output = checkpoint(forward, x, use_reentrant=reentrant) if repeat else forward(x)
        loss = router.collect()['kl']
        # a gradient per choice, and the balance's
        ((output * torch.arange(output.numel()).view_as(output)).sum() + loss).backward()
        results.append([output.detach(), x.grad, *(p.grad for p in router.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert results[0][1].abs().max() > 0
