"""What dispatch may not cost: copies to the host, and memory that grows with the number of experts."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

import moe_det.routing.dispatch as dispatch_module
from moe_det.routing import (
    GAPLinearGate,
    KLConstraint,
    RelativeImportanceConstraint,
    Router,
    mix_linear,
    plan_dispatch,
    run_sorted,
)

# operators whose result the host must wait for, or whose shape depends on values
WAITING = {'_local_scalar_dense', 'item', 'is_nonzero', 'nonzero', 'equal', 'masked_select', 'unique_dim', '_unique2'}


class WaitCounter(TorchDispatchMode):
    """Counts operators that would stop the host, and boolean indexing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.seen[name] += 1
        if name in ('index', 'index_put', 'index_put_'):
            self.seen['boolean index'] += sum(i is not None and i.dtype == torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    'operation',
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: bool(x.any()),
        lambda x: float(x[0]),
        lambda x: torch.masked_select(x, x > 0),
    ],
)
def test_the_counter_sees_operations_that_wait(operation):
    with WaitCounter() as counter:
        operation(torch.randn(5))
    assert +counter.seen  # the positive counts


@pytest.fixture
def host_copies(monkeypatch) -> list[int]:
    """Numbers of values that copy_to_host was called for."""
    sizes = []
    original = dispatch_module.copy_to_host

    def counted(indices):
        sizes.append(indices.numel())
        return original(indices)

    monkeypatch.setattr(dispatch_module, 'copy_to_host', counted)
    return sizes


def test_a_plan_copies_once_whatever_it_plans(host_copies, routing_from):
    first, second = (routing_from(torch.randn(12, 4), k) for k in (1, 2))
    plan_dispatch([first], (12,))
    assert host_copies == [12]
    plan_dispatch([first, second], (4, 5, 3))
    assert host_copies == [12, 12 + 24]  # what every row chose, once and twice


@pytest.mark.parametrize('constraint', [None, KLConstraint, RelativeImportanceConstraint])
@pytest.mark.parametrize('unit', ['level', 'image', 'patch'])
@pytest.mark.parametrize('mode', ['sorted', 'all'])
@pytest.mark.parametrize('training', [True, False])
def test_nothing_else_waits_for_the_device(training, mode, unit, constraint, host_copies, run_layer, conv_group):
    constraints = [constraint()] if constraint else []
    router = Router(GAPLinearGate(3, 4).double(), constraints, top_k=2, unit=unit, balance_over='level', num_levels=2)
    router.double().train(training)
    group = conv_group(4, 3, 2, dispatch=mode).train(training)
    maps = [torch.randn(3, 3, 4, 4).double(), torch.randn(3, 3, 2, 2).double()]
    for _ in range(2):  # the second step runs under a mask
        host_copies.clear()
        with WaitCounter() as counter:
            outputs = run_layer(router, group, maps, unit, 2)
            losses = router.collect()
            if training:
                (sum(y.sum() for y in outputs) + sum(losses.values())).backward()
        assert not +counter.seen
        assert len(host_copies) == (1 if mode == 'sorted' else 0)


def saved_for_backward(num_experts: int, conv_group, run_layer) -> list[int]:
    """Sizes of the tensors that a training forward keeps, when half of the rows take experts 0, 1 and half 2, 3."""
    gate = GAPLinearGate(4, num_experts)
    gate.fc.weight.data.zero_()
    gate.fc.weight.data[:2, 0], gate.fc.weight.data[2:4, 0] = 100.0, -100.0
    gate.fc.bias.data.fill_(-1e3)
    gate.fc.bias.data[:4] = torch.tensor([0.0, -1.0, 0.0, -1.0])
    router = Router(gate.double(), top_k=2).train()
    group = conv_group(num_experts, 4, 4).train()
    maps = [torch.randn(6, 4, 16, 16, dtype=torch.float64, requires_grad=True)]
    with torch.no_grad():
        maps[0][:3, 0], maps[0][3:, 0] = 1.0, -1.0
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run_layer(router, group, maps, 'level')
    return sizes


def test_memory_for_backward_does_not_grow_with_the_number_of_experts(conv_group, run_layer):
    few, many = saved_for_backward(4, conv_group, run_layer), saved_for_backward(16, conv_group, run_layer)
    assert len(few) == len(many)
    # what may grow are the gate's own (R, E) and (E, C) tensors; a map of one row holds 4 * 16 * 16 numbers
    largest_of_gate = 6 * 17
    assert sorted(n for n in few if n > largest_of_gate) == sorted(n for n in many if n > largest_of_gate)
    assert max(few) >= 6 * 4 * 16 * 16
    grown = sum(many) - sum(few)
    assert grown <= len(few) * 6 * 13
    assert grown < 0.02 * sum(few)


class BufferSizes(TorchDispatchMode):
    """Records the sizes of all tensors that operators make; views of others do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(returned.alias_info is not None for returned in func._schema.returns):
            return result
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.sizes.append(tensor.numel())
        return result


def test_no_buffer_has_an_expert_axis(conv_group, run_layer):
    largest = []
    for num_experts in (4, 16):
        with BufferSizes() as buffers:
            saved_for_backward(num_experts, conv_group, run_layer)
        largest.append(Counter(n for n in buffers.sizes if n > 6 * 17))
    one_map = 4 * 16 * 16
    # building 12 experts more makes weights of 4 * 4 * 9 numbers; of larger tensors there is not one more
    assert {n: count for n, count in largest[0].items() if n > 200} == {
        n: count for n, count in largest[1].items() if n > 200
    }
    assert max(largest[0]) == 2 * 6 * one_map  # K outputs for each of 6 rows


@pytest.mark.parametrize(('rows', 'top_k'), [(1, 1), (1, 2), (5, 1), (5, 2)])
def test_rows_that_agree_are_not_copied(rows, top_k, conv_group, run_layer):
    router = Router(GAPLinearGate(3, 4).double(), top_k=top_k).eval()
    router.gate.fc.weight.data.zero_()
    group = conv_group(4, 3, 2)
    maps = torch.randn(rows, 3, 4, 4, dtype=torch.float64)
    seen = []
    for expert in group.experts:
        expert.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    run_layer(router, group, [maps], 'level')
    assert len(seen) == top_k
    assert all(x is maps for x in seen)


def test_rows_that_follow_each_other_are_not_copied(routing_from, conv_group):
    logits = torch.full((4, 3), -5.0, dtype=torch.float64)
    logits[[0, 1, 2, 3], [2, 2, 0, 1]] = 5.0  # expert 2 has the first two rows, then expert 0, then expert 1
    routing, group = routing_from(logits, 1), conv_group(3, 3, 2)
    maps = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    seen = {}
    for number, expert in enumerate(group.experts):
        expert.register_forward_pre_hook(lambda module, args, number=number: seen.update({number: args[0]}))
    run_sorted(maps, routing, plan_dispatch([routing], (4,))[0][0], group.experts, mix_linear)
    rows = {number: (part.data_ptr() - maps.data_ptr()) // maps[0].nbytes for number, part in seen.items()}
    assert rows == {2: 0, 0: 2, 1: 3}
    assert {number: len(part) for number, part in seen.items()} == {2: 2, 0: 1, 1: 1}


def filled_in_backward(choices: list[int], routing_from, conv_group) -> set[int]:
    """Sizes of the tensors that a backward through dispatch fills with zeros."""
    logits = torch.zeros(len(choices), 3, dtype=torch.float64)
    logits[torch.arange(len(choices)), torch.tensor(choices)] = 5.0
    routing, group = routing_from(logits, 1), conv_group(3, 3, 2)
    maps = torch.randn(len(choices), 3, 4, 4, dtype=torch.float64, requires_grad=True)
    output = run_sorted(maps, routing, plan_dispatch([routing], (len(choices),))[0][0], group.experts, mix_linear)
    sizes = set()

    class Zeros(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ in ('zeros', 'zero_', 'new_zeros', 'zeros_like', 'fill_', 'index_add_'):
                sizes.add(result.numel())
            return result

    with Zeros():
        output.sum().backward()
    return sizes


@pytest.mark.parametrize('choices', [[2, 0, 1], [2, 0, 2]])  # slices, and rows that lie apart
def test_no_gradient_is_filled_with_zeros_first(choices, routing_from, conv_group):
    assert not {size for size in filled_in_backward(choices, routing_from, conv_group) if size >= 2 * 16}


def test_a_linear_mixture_keeps_no_product_of_weights_and_outputs():
    outputs = torch.randn(3, 2, 4, 5, 5, requires_grad=True)
    log_weights = torch.randn(3, 2, requires_grad=True)
    sizes = []
    with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        mix_linear(outputs, log_weights)
    assert sorted(sizes)[-2:] == [6, outputs.numel()]
