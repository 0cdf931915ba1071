"""Experts as a common part plus differences: the sums compute, gradients reach both, every checkpoint loads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from moe_det.routing import (
    AttentiveGate,
    ExpertGroup,
    GAPLinearGate,
    Router,
    copy_dense_to_experts,
    fold_common,
    plan_dispatch,
    rows_of,
)

EXACT = {'rtol': 1e-12, 'atol': 1e-12}


def expert() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())


def group_of(num_experts: int = 6, slots: int = 2, common: bool = True, **arguments) -> ExpertGroup:
    """A group whose common parts and differences are all of the size of weights."""
    torch.manual_seed(num_experts)
    group = ExpertGroup([expert() for _ in range(num_experts)], slots=slots, common=common, **arguments).double()
    for parameter in group.parameters():
        nn.init.normal_(parameter)
    return group


def router_of(slots: int = 2, num_experts: int = 6) -> Router:
    torch.manual_seed(7)
    gate = GAPLinearGate(3, num_experts)
    nn.init.normal_(gate.fc.weight, std=3)
    weighting = 'softmax' if slots > 1 else 'straight_through'
    return Router(gate, top_k=slots, slots=slots, weighting=weighting).double()


def maps(rows: int = 5) -> torch.Tensor:
    torch.manual_seed(8)
    return torch.randn(rows, 3, 4, 4, dtype=torch.float64)


def weights(group: ExpertGroup) -> list[torch.Tensor]:
    return [value.detach().clone() for e in range(len(group)) for value in group.weights_of(e).values()]


@pytest.mark.parametrize('slots', [1, 2])
def test_an_expert_computes_with_the_sum_and_its_own_statistics(slots, run_layer):
    shared, plain = group_of(slots=slots), group_of(slots=slots, common=False)
    router, x = router_of(slots), maps()
    with torch.no_grad():
        for e, module in enumerate(plain.experts):
            for name, parameter in module.named_parameters():
                common = shared.common[e // shared.copies].get_parameter(name)
                parameter.copy_(common + shared.experts[e].get_parameter(name))
    for dispatch in ('sorted', 'all'):
        for mode in (True, False):
            for group in (shared, plain):
                group.dispatch = dispatch
                group.train(mode)
            outputs = [run_layer(router, group, [x], 'level')[0] for group in (shared, plain)]
            torch.testing.assert_close(*outputs, **EXACT)
    for (name, value), (_, other) in zip(shared.experts.named_buffers(), plain.experts.named_buffers(), strict=True):
        torch.testing.assert_close(value, other, **EXACT, msg=name)
    assert not list(shared.common.buffers())


@pytest.mark.parametrize('slots', [1, 2])
def test_the_gradient_of_the_common_part_is_the_sum_over_copies(slots, run_layer):
    group = group_of(slots=slots).train()
    for parameter in group.experts.parameters():
        nn.init.zeros_(parameter)  # identical copies
    run_layer(router_of(slots), group, [maps()], 'level')[0].square().sum().backward()
    copies = group.copies
    for slot, common in enumerate(group.common):
        used = 0
        for name, parameter in common.named_parameters():
            own = [e.get_parameter(name).grad for e in group.experts[slot * copies : (slot + 1) * copies]]
            torch.testing.assert_close(parameter.grad, sum(own), **EXACT)
            used = max(used, sum(bool(gradient.any()) for gradient in own))
        assert used > 1  # more than one copy had rows


def test_what_no_row_used_gets_a_zero_gradient(run_layer):
    group, router = group_of(num_experts=4, slots=1).train(), router_of(1, 4)
    x = maps(rows=1)
    run_layer(router, group, [x], 'level')[0].sum().backward()
    chosen = router.gate(x).argmax().item()
    for e, module in enumerate(group.experts):
        assert all(bool(p.grad.any()) <= (e == chosen) for p in module.parameters())
    # a layer without rows: neither the common parts nor the differences lack a gradient
    group, router = group_of().train(), router_of()
    rows, layout = rows_of([maps()[:0]], 'level')
    routing = router(rows, layout)
    group.experts.eval()  # a norm refuses to train on nothing
    group(rows, routing, layout, plan_dispatch([routing], (0,))[0])[0].sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in group.parameters())


def test_an_attentive_gate_sees_what_the_sums_compute():
    group = group_of(num_experts=3, slots=1).eval()
    router = Router(AttentiveGate(3, 3, 4), top_k=2).double().eval()
    rows, layout = rows_of([maps()], 'level')
    output = group.run_and_route(rows, router, rows, layout)[0]
    torch.testing.assert_close(fold_common(group).run_and_route(rows, router, rows, layout)[0], output, **EXACT)


def test_folding_keeps_the_weights_and_drops_the_common_part(run_layer):
    model = nn.ModuleDict({'a': group_of(), 'b': group_of(4, 1), 'c': group_of(4, 1, common=False)}).eval()
    before = {name: weights(group) for name, group in model.items()}
    x, router = maps(), router_of()
    (output,) = run_layer(router, model['a'], [x], 'level')
    assert fold_common(model) is model
    assert not [name for name in model.state_dict() if 'common' in name]
    for name, group in model.items():
        for value, old in zip(group.experts.parameters(), before[name], strict=True):
            torch.testing.assert_close(value, old, rtol=0, atol=0)
    torch.testing.assert_close(run_layer(router, model['a'], [x], 'level')[0], output, rtol=0, atol=0)
    fold_common(model)  # nothing more to do


def test_from_scratch_the_first_expert_of_each_slot_is_copied_with_noise():
    torch.manual_seed(0)
    group = ExpertGroup([nn.Conv2d(40, 40, 3) for _ in range(6)], slots=2, common=True, copy_noise=0.1)
    first = [group.experts[e].weight.detach().clone() for e in (0, 3)]
    assert not any(p.any() for p in group.common.parameters())  # until the experts are initialised
    group.start_common()
    for slot in range(2):
        assert torch.equal(group.common[slot].weight, first[slot])
        differences = [group.experts[e].weight for e in range(3 * slot, 3 * slot + 3)]
        for difference in differences:
            assert difference.std().item() == pytest.approx(0.1 * first[slot].std().item(), rel=0.05)
        assert not torch.equal(differences[0], differences[1])
    plain = group_of(common=False)
    before = weights(plain)
    plain.start_common()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(plain), strict=True))


# -- checkpoints ------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_same_form_is_taken_bit_for_bit():
    source, target = group_of(), ExpertGroup([expert() for _ in range(6)], slots=2, common=True).double()
    target.load_state_dict(source.state_dict(), strict=True)
    for (name, value), other in zip(target.state_dict().items(), source.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_a_checkpoint_without_versions_loads_strictly():
    # norms of a checkpoint without metadata add a buffer that they miss; the common part has none
    state = {f'group.{name}': value for name, value in group_of().state_dict().items()}
    nn.ModuleDict({'group': group_of()}).load_state_dict(state, strict=True)


@pytest.mark.parametrize('slots', [1, 2])
@pytest.mark.parametrize('stored', [True, False])
def test_a_checkpoint_of_the_other_form_gives_the_same_weights(stored, slots):
    source = group_of(slots=slots, common=stored)
    with torch.no_grad():
        for buffer in source.buffers():
            buffer.add_(1)
    target = group_of(slots=slots, common=not stored)
    nn.ModuleDict({'group': target}).load_state_dict(nn.ModuleDict({'group': source}).state_dict(), strict=True)
    for value, expected in zip(weights(target), weights(source), strict=True):
        torch.testing.assert_close(value, expected, **EXACT)
    for value, expected in zip(target.buffers(), source.buffers(), strict=True):
        assert torch.equal(value, expected)
    if target.common is not None:  # the mean, from which the differences are 0 on average
        for slot in range(slots):
            own = list(target.experts[slot * target.copies : (slot + 1) * target.copies])
            for name, _ in own[0].named_parameters():
                mean = torch.stack([e.get_parameter(name) for e in own]).mean(0)
                torch.testing.assert_close(mean, torch.zeros_like(mean), **EXACT)


@pytest.mark.parametrize('noise', [0.0, 0.5])
def test_the_dense_branch_becomes_the_common_part_and_noise_the_difference(noise):
    dense, group = expert().double(), group_of()
    nn.init.normal_(dense[1].weight)
    state = {f'dense.{name}': value for name, value in dense.state_dict().items()}
    names = {key: key.removeprefix('dense.') for key in state}
    plain = group_of(common=False)
    plain.load_state_dict(fold_common(copy.deepcopy(group)).state_dict())  # the same weights seed the noise
    plain_state = dict(state)
    assert copy_dense_to_experts(state, names, group, 'experts.', noise) == []
    assert copy_dense_to_experts(plain_state, names, plain, 'experts.', noise) == []
    group.load_state_dict(state, strict=True)
    plain.load_state_dict(plain_state, strict=True)
    for common in group.common:
        for name, parameter in common.named_parameters():
            assert torch.equal(parameter, dense.get_parameter(name))
    for value, expected in zip(weights(group), weights(plain), strict=True):
        torch.testing.assert_close(value, expected, **EXACT)
    assert any(p.any() for p in group.experts.parameters()) == bool(noise)
