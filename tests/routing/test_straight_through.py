"""Weights of value 1 with the gradient of a probability, and checkpoints that tell them from softmax weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe_det.errors import CheckpointError
from moe_det.routing import (
    AttentiveGate,
    DistilledGate,
    ExpertGroup,
    GAPLinearGate,
    Router,
    mix_linear,
    mix_probabilities,
)
from moe_det.routing.intervention import Intervention, intervene

EXACT = {'rtol': 1e-12, 'atol': 1e-12}


def router_of(num_experts: int = 4, top_k: int = 1, **arguments) -> Router:
    gate = GAPLinearGate(3, num_experts)
    nn.init.normal_(gate.fc.weight, std=3)
    return Router(gate, top_k=top_k, **arguments)


def test_one_expert_keeps_its_logit_and_the_gate_the_gradient_of_a_weight_just_below_one():
    logits = torch.randn(4, 1, 3, 5, dtype=torch.float64) * 3
    upstream = torch.randn(4, 3, 5, dtype=torch.float64)
    log_weight = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)
    outputs = logits.clone().requires_grad_()
    mixed = mix_probabilities(outputs, log_weight, True)
    assert torch.equal(mixed, logits[:, 0])
    mixed.backward(upstream)
    assert torch.equal(outputs.grad[:, 0], upstream)
    # d/dw of log(w s) - log(1 - w s) for s = sigmoid(z), a little below w = 1
    weight = torch.full((4, 1, 1), 1 - 1e-9, dtype=torch.float64, requires_grad=True)
    p = weight * logits[:, 0].sigmoid()
    (p.log() - (1 - p).log()).backward(upstream)
    torch.testing.assert_close(log_weight.grad, weight.grad[:, :, 0], rtol=1e-5, atol=1e-5)


def test_the_gradient_of_large_logits_stays_finite():
    outputs = torch.full((1, 1, 64), 500.0, requires_grad=True)
    log_weight = torch.zeros(1, 1, requires_grad=True)
    mix_probabilities(outputs, log_weight, True).sum().backward()
    assert torch.isfinite(log_weight.grad).all()
    assert log_weight.grad > 64 * 1e7  # 1 over the distance from 1 to the number below it


@pytest.mark.parametrize('mixture', [mix_linear, mix_probabilities])
@pytest.mark.parametrize('num_rows', [1, 6])
def test_both_dispatches_agree_in_values_and_gradients(mixture, num_rows, conv_group, run_layer):
    router = router_of(weighting='straight_through').double().train()
    maps = [torch.randn(num_rows, 3, 5, 4, dtype=torch.float64)]
    group = conv_group(4, 3, 2, mixture).train()
    results = []
    for dispatch in ('sorted', 'all'):
        group.dispatch = dispatch
        router.zero_grad(), group.zero_grad()
        (output,) = run_layer(router, group, maps, 'level')
        output.square().sum().backward()
        results.append([output, *(p.grad for p in [*router.parameters(), *group.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    assert results[0][1].abs().max() > 1e-6  # of the gate
    chosen = router.gate(maps[0]).argmax(1)
    for row, expert in enumerate(chosen.tolist()):
        expected = group.experts[expert](maps[0][row : row + 1])[0]
        torch.testing.assert_close(results[0][0][row], expected, **EXACT)


def test_equal_experts_compute_what_one_does(conv_group, run_layer):
    group = conv_group(4, 3, 2, mix_probabilities)
    for expert in group.experts[1:]:
        expert.load_state_dict(group.experts[0].state_dict())
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    (output,) = run_layer(router_of(weighting='straight_through').double().eval(), group.eval(), [x], 'level')
    assert torch.equal(output, group.experts[0](x))
    (scaled,) = run_layer(router_of().double().eval(), group.eval(), [x], 'level')
    assert (scaled < output).all()  # softmax weights leave a part to "no object"


def test_another_k_at_test_time_takes_softmax_weights(route_rows):
    model = nn.ModuleDict({'layer': router_of(weighting='straight_through')}).eval()
    x = torch.randn(5, 3, 6, 6)
    with intervene(model, {'layer': Intervention(top_k=2)}):
        routing = route_rows(model['layer'], x)
    kept = model['layer'].gate(x).sort(1, descending=True).values[:, :2].softmax(1)
    torch.testing.assert_close(routing.weights, kept)


def test_a_forced_expert_counts_in_full(route_rows):
    model = nn.ModuleDict({'layer': router_of(weighting='straight_through')}).eval()
    with intervene(model, {'layer': Intervention(forced=(1, 3))}):
        routing = route_rows(model['layer'], torch.randn(5, 3, 6, 6))
    torch.testing.assert_close(routing.over_experts(routing.weights, 0.0), torch.tensor([[0, 0.5, 0, 0.5]] * 5))


# -- checkpoints ------------------------------------------------------------------------------------------------

PLAIN = {'top_k': 1}
STRAIGHT = {'top_k': 1, 'weighting': 'straight_through'}
SHARDS = {'num_experts': 8, 'top_k': 2, 'slots': 2}


def test_only_straight_through_routers_store_what_they_are():
    assert 'straight_through' not in router_of(**PLAIN).state_dict()
    for arguments in (STRAIGHT, SHARDS):
        router = router_of(**arguments)
        stored = router.state_dict()
        assert stored['straight_through'].tolist() == [1]
        router_of(**arguments).load_state_dict(stored)


@pytest.mark.parametrize(
    ('stored', 'config', 'words'),
    [
        (PLAIN, STRAIGHT, "top_k=1, weighting='softmax' at layer, the config .*weighting='straight_through'"),
        (STRAIGHT, PLAIN, "weighting='straight_through' at layer, the config .*weighting='softmax'"),
        ({'num_experts': 8, 'top_k': 2}, SHARDS, "weighting='softmax' at layer, the config shards=2, copies=4, weigh"),
        ({**SHARDS, 'num_experts': 6}, SHARDS, 'has shards=2, copies=3 at layer, the config shards=2, copies=4: '),
        ({'num_experts': 8, 'top_k': 4, 'slots': 4}, SHARDS, 'has shards=4, copies=2 at layer, the config shards=2'),
        ({**STRAIGHT, 'num_experts': 8}, SHARDS, 'has shards=1, copies=8 at layer, the config shards=2, copies=4: '),
        ({**STRAIGHT, 'num_experts': 3}, STRAIGHT, 'has num_experts=3, top_k=1 at layer, the config num_experts=4'),
        ({'top_k': 2}, {'num_experts': 3, 'top_k': 2}, 'num_experts=4, top_k=2.* at layer, the config num_experts=3'),
        (PLAIN, {'top_k': 2}, 'num_experts=4, top_k=1.* at layer, the config num_experts=4, top_k=2'),
    ],
)
def test_checkpoints_of_another_kind_are_refused(stored, config, words):
    model = nn.ModuleDict({'layer': router_of(**config)})
    state = nn.ModuleDict({'layer': router_of(**stored)}).state_dict()
    with pytest.raises(CheckpointError, match=words):
        model.load_state_dict(state, strict=False)


def test_a_group_of_another_number_of_copies_is_refused():
    groups = [ExpertGroup([nn.Conv2d(1, 1, 1) for _ in range(n)], slots=2) for n in (6, 8)]
    with pytest.raises(CheckpointError, match='has num_experts=6 .* shards=2 of copies=4'):
        groups[1].load_state_dict(groups[0].state_dict())


def test_a_gate_that_is_fitted_anew_may_choose_other_weights():
    attentive = Router(AttentiveGate(3, 4, 5), top_k=2)
    distilled = Router(DistilledGate(3, 4, 5, teacher=AttentiveGate(3, 4, 5)), **STRAIGHT)
    distilled.load_state_dict(attentive.state_dict())
    assert distilled.experts_and_k.tolist() == [4, 1]
    assert torch.equal(distilled.gate.teacher.to_key.weight, attentive.gate.to_key.weight)
