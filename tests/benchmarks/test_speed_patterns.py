"""The reference patterns of the speed benchmark compute what our layer computes, and cost what they are known to."""

from __future__ import annotations

import pytest
import torch
from speed.counters import count_macs, count_operators, saved_bytes
from speed.layers import OURS, LayerShape, layer_step, moe_layer, pattern_layers, plant_routing
from speed.patterns import GroupedConvolutions
from torch import Tensor, nn

from moe_det.layers.moe_layer import MoELayer
from moe_det.routing import GAPLinearGate, Router
from moe_det.routing.rows import rows_of

SHAPE = LayerShape(rows=5, channels=3, height=4, width=6, convs=2)
MASKS, LOOP, GROUPED = 'boolean masks', 'index_add loop', 'grouped convolution'


def layers(experts: int, top_k: int, logits: Tensor | None = None, **planted) -> dict[str, nn.Module]:
    """Ours and the references in float64, without noise; ``logits`` (R, E) replace the planted routing."""
    torch.manual_seed(0)
    layer = moe_layer(SHAPE, experts, top_k, **planted).double()
    layer.router.noise = None
    if logits is not None:
        layer.router.gate._forward_hooks.clear()
        layer.router.gate.register_forward_hook(lambda gate, args, out: out + logits)
    return {name: module.double() for name, module in pattern_layers(layer).items()}


def naive(layer: MoELayer, x: Tensor) -> Tensor:
    """Row by row: the weighted sum of the outputs of the chosen experts."""
    rows, layout = rows_of([x], 'level')
    routing = layer.router(rows, layout)
    outputs = []
    for row, (experts, weights) in enumerate(zip(routing.indices.tolist(), routing.log_weights.exp(), strict=True)):
        parts = [w * layer.expert_group.experts[e](x[row : row + 1]) for e, w in zip(experts, weights, strict=True)]
        outputs.append(sum(parts))
    return torch.cat(outputs)


def gradients(module: nn.Module, x: Tensor, run) -> dict[str, Tensor]:
    """Output, and gradients of a random linear function of it and the auxiliary loss, by the names in our layer."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    output = run(x)
    direction = torch.randn(output.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    ((output * direction).sum() + sum(module.router.collect().values())).backward()
    found = {'output': output.detach(), 'input': x.grad}
    gate = module.router.gate.fc
    found.update({'gate.weight': gate.weight.grad.clone(), 'gate.bias': gate.bias.grad.clone()})
    grouped = getattr(module, 'pattern', None)
    if isinstance(grouped, GroupedConvolutions):
        for kind, stacks in (('weight', grouped.weights), ('bias', grouped.biases)):
            for number, stack in enumerate(stacks):
                found.update({f'{e}.{2 * number}.{kind}': g for e, g in enumerate(stack.grad)})
    else:
        experts = module.experts if hasattr(module, 'experts') else module.expert_group.experts
        for name, parameter in experts.named_parameters():
            found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    return found


ROUTINGS = {
    'planted': None,
    'random': lambda e: torch.randn(SHAPE.rows, e, dtype=torch.float64) * 3,
    'collapsed': lambda e: torch.arange(e, dtype=torch.float64).repeat(SHAPE.rows, 1) * 9,
}


@pytest.mark.parametrize('routing', ROUTINGS)
@pytest.mark.parametrize(('experts', 'top_k'), [(4, 1), (4, 2), (6, 3), (3, 3)])
@pytest.mark.parametrize('training', [True, False])
def test_patterns_agree_with_running_row_by_row(experts, top_k, routing, training):
    torch.manual_seed(3)
    made = ROUTINGS[routing]
    modules = layers(experts, top_k, made and made(experts))
    x = torch.randn(SHAPE.maps().shape, dtype=torch.float64)
    ours = modules[OURS].train(training)
    expected = gradients(ours, x, lambda x: naive(ours, x))
    assert set(modules) == {OURS, MASKS, LOOP, GROUPED}
    for name, module in modules.items():
        module.train(training)
        found = gradients(module, x, module)
        assert set(found) == set(expected), name
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key], value, rtol=1e-11, atol=1e-12, msg=lambda m, n=name, k=key: f'{n} {k}: {m}'
            )
    assert expected['gate.weight'].abs().max() > 0 or top_k == 1


def choices(layer: MoELayer, rows: int) -> list[list[int]]:
    maps, layout = rows_of([torch.randn(rows, SHAPE.channels, 4, 4)], 'level')
    return layer.router(maps, layout).indices.sort(1).values.tolist()


def test_planted_routing_is_balanced_and_shifts_with_the_level():
    layer = moe_layer(SHAPE, 4, 2).eval()
    assert choices(layer, 5) == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]
    layer = moe_layer(SHAPE, 8, 1, active=3).eval()
    assert choices(layer, 4) == [[0], [1], [2], [0]]
    layer.router.gate._forward_hooks.clear()
    plant_routing(layer.router, 2, levels=3)
    assert [choices(layer, 2) for _ in range(4)] == [[[0], [1]], [[1], [2]], [[2], [3]], [[0], [1]]]
    with pytest.raises(ValueError, match='active=1: expected at least top_k=2'):
        moe_layer(SHAPE, 4, 2, active=1)


def test_planted_routing_of_shards_takes_one_copy_of_each():
    router = Router(GAPLinearGate(SHAPE.channels, 8), top_k=2, slots=2).eval()
    plant_routing(router, 5, levels=2, active=3)
    rows, layout = rows_of([torch.randn(5, SHAPE.channels, 4, 4)], 'level')
    # the second shard's copies are the experts 4 to 7
    assert router(rows, layout).indices.tolist() == [[0, 4], [1, 5], [2, 6], [0, 4], [1, 5]]
    assert router(rows, layout).indices.tolist() == [[1, 5], [2, 6], [0, 4], [1, 5], [2, 6]]


def operators(module: nn.Module, x: Tensor, training: bool = False) -> dict:
    return count_operators(layer_step(module, x, training))


@pytest.mark.parametrize('experts', [4, 8])
def test_host_copies_and_convolutions(experts):
    modules = layers(experts, 2, active=4)
    x = torch.randn(SHAPE.maps().shape, dtype=torch.float64)
    found = {name: operators(module, x) for name, module in modules.items()}
    assert found[OURS] == dict(host_copies=1, convolutions_forward=4 * SHAPE.convs, convolutions_backward=0)
    # every expert's mask is read, the four in use are written as well; the loop asks all, and searches the four
    assert found[MASKS]['host_copies'] == experts + 4
    assert found[LOOP]['host_copies'] == experts + 4
    assert found[GROUPED] == dict(host_copies=0, convolutions_forward=SHAPE.convs, convolutions_backward=0)
    in_training = {name: operators(module, x, True) for name, module in modules.items()}
    assert in_training[OURS] == dict(
        host_copies=1, convolutions_forward=4 * SHAPE.convs, convolutions_backward=4 * SHAPE.convs
    )
    assert in_training[MASKS]['host_copies'] > found[MASKS]['host_copies']


def kept(module: nn.Module) -> int:
    x = SHAPE.maps().double().requires_grad_()
    module.train()

    def forward() -> Tensor:
        output = module(x)
        return output.sum() + sum(module.router.collect().values())

    return saved_bytes(forward, [x, *module.parameters()])


def test_buffers_for_all_experts_are_kept_by_boolean_masks_alone():
    few, many = ({n: kept(m) for n, m in layers(e, 2, active=4).items()} for e in (4, 16))
    a_map = 8 * 3 * 4 * 6  # bytes of one row
    grown = {name: many[name] - few[name] for name in few}
    assert grown[MASKS] >= 12 * SHAPE.rows * a_map
    for name in (OURS, LOOP, GROUPED):  # the gate's (R, E) numbers grow
        assert 0 <= grown[name] < 12 * SHAPE.rows * 8 * 8, name


def test_saved_bytes_by_hand():
    conv = nn.Conv2d(3, 5, 3, padding=1)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    # in place: the ReLU's output, which is the convolution's too, is all that is not there anyway
    assert saved_bytes(lambda: torch.relu_(conv(x)), [x, conv.weight, conv.bias]) == 4 * 2 * 5 * 4 * 4
    assert saved_bytes(lambda: conv(x), [x, conv.weight]) == 0
    assert saved_bytes(lambda: conv(x), [conv.weight]) == 4 * x.numel()
    assert saved_bytes(lambda: x[:1] * x[1:], []) == 4 * x.numel()  # two views of one storage


def test_multiply_adds_by_hand():
    x = torch.randn(2, 3, 4, 4)
    assert count_macs(lambda: nn.Conv2d(3, 5, 3, padding=1)(x)) == 2 * 16 * 9 * 3 * 5
