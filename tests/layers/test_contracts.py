"""Promises that every registered gate and constraint keeps, and experts of one's own too: new ones are tested here.

A class that needs arguments gets them in ``ARGUMENTS``; nothing else names the classes.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from moe_det.layers import MoEConv2d, MoESettings
from moe_det.registry import CONSTRAINTS, EXPERTS, GATES, build_named
from moe_det.routing import DistilledGate, Gate, HardConstraint, Router, rows_of
from moe_det.routing.distillation import DistillationConstraint

CHANNELS, EXPERTS_OF_LAYER, SIZE = 3, 4, 8
SMALL_NET = {'image_size': SIZE, 'channels': (4,), 'hidden': (4,)}
ARGUMENTS = {
    'ConvGAPGate': {'hidden_channels': 4},
    'ConvNetGate': SMALL_NET,
    'DistilledGate': {'teacher': {'type': 'AttentiveGate', 'hidden_channels': 4}},
}
OF_CONSTRAINTS = {
    'SampleSimilarityConstraint': {'distance': 'features'},
    'ClusterMask': {'clusters': 2, 'channels': CHANNELS},
}


def gate_cfg(name: str) -> dict:
    """Config of a registered gate."""
    return {'type': name, **ARGUMENTS.get(name, {})}


def build_gate(name: str) -> Gate:
    """A gate as a layer builds it."""
    return build_layer(gate=gate_cfg(name)).router.gate


def build_layer(**moe) -> MoEConv2d:
    """A layer in double precision."""
    torch.manual_seed(0)
    layer = MoEConv2d(CHANNELS, 2, 3, padding=1, num_experts=EXPERTS_OF_LAYER, top_k=2, **moe).double()
    if isinstance(layer.router.gate, DistilledGate):
        layer.router.gate.has_trained_teacher = True  # as after a checkpoint
    return layer


def maps(images: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    """Maps with different means."""
    generator = torch.Generator().manual_seed(1)
    mean = torch.linspace(-1, 1, max(images, 1))[:images, None, None, None]
    return (torch.randn(images, CHANNELS, SIZE, SIZE, generator=generator) + mean).to(dtype)


def keys(gate: Gate, images: int) -> tuple[Tensor, ...]:
    """Features of the experts for a gate that asks for them."""
    return (torch.randn(images, EXPERTS_OF_LAYER, 2, dtype=torch.float64),) if gate.needs_keys else ()


@pytest.mark.parametrize('name', GATES.module_dict)
class TestGate:
    def test_logits_have_full_precision(self, name):
        gate, seen = build_gate(name).float(), maps().float()
        given = [key.float() for key in keys(gate, 3)]
        full = gate(seen, *given)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(gate(seen, *given), full)
            assert gate(seen.bfloat16(), *given).dtype == torch.float32
        if name == 'ConvNetGate':  # a whole network: half weights compute in half precision
            return
        half = gate.half()(seen.half(), *[key.half() for key in given])
        assert half.shape == (3, EXPERTS_OF_LAYER) and half.dtype == torch.float32
        torch.testing.assert_close(half, full, rtol=0, atol=0.02)

    def test_the_gradient_is_that_of_the_logits(self, name):
        gate = build_gate(name)
        seen = maps(2)[:, :, :SIZE, :SIZE].requires_grad_()
        given = keys(gate, 2)
        assert gradcheck(lambda x: gate(x, *given), (seen,), fast_mode=True)

    def test_an_image_is_routed_whatever_the_others_are(self, name):
        gate = build_gate(name).eval()
        given = keys(gate, 3)
        whole = gate(maps(), *given)
        spoilt = maps()
        spoilt[1] = float('nan')
        after = gate(spoilt, *given)
        alone = gate(maps()[:1], *[key[:1] for key in given])
        torch.testing.assert_close(after[[0, 2]], whole[[0, 2]], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone, whole[:1], rtol=1e-12, atol=1e-12)

    def test_no_rows_give_no_logits(self, name):
        gate = build_gate(name).eval()
        assert gate(maps(0), *keys(gate, 0)).shape == (0, EXPERTS_OF_LAYER)

    def test_a_layer_trains_and_its_state_comes_back(self, name):
        layer = build_layer(gate=gate_cfg(name)).train()
        output = layer(maps())
        (output.square().sum() + sum(layer.router.collect().values())).backward()
        if not issubclass(GATES.get(name), DistilledGate):  # whose teacher and experts are frozen
            assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
        other = build_layer(gate=gate_cfg(name))
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other.eval()(maps()), layer.eval()(maps()))
        assert torch.equal(copy.deepcopy(layer)(maps()), layer(maps()))


def constraint_cfg(name: str) -> dict:
    """Config of a registered constraint."""
    return {'type': name, **OF_CONSTRAINTS.get(name, {})}


def router_with(name: str, balance_over: str = 'all') -> Router:
    """A router of two levels with one constraint."""
    settings = MoESettings(
        num_experts=EXPERTS_OF_LAYER,
        top_k=2,
        constraint=constraint_cfg(name),
        balance_over=balance_over,
        noise=False,
    )
    torch.manual_seed(0)
    router = settings.build_router(CHANNELS, 'test', num_levels=2).double().train()
    if 'cluster' in router.constraints:
        mask = router.constraints['cluster']
        mask.fill(torch.eye(2, CHANNELS))
        router.register_forward_pre_hook(lambda _, args: mask.see(args[0][0].mean((2, 3))))
    return router


def step(router: Router, images: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """One training step over two levels; its losses."""
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(images, CHANNELS, s, s, generator=generator, dtype=torch.float64) for s in (4, 2)]
    router(*rows_of(levels, 'level'))
    return router.collect()


@pytest.mark.parametrize('balance_over', ['all', 'level'])
@pytest.mark.parametrize('name', CONSTRAINTS.module_dict)
class TestConstraint:
    def test_losses_are_finite_scalars_and_reach_the_gate(self, name, balance_over):
        router = router_with(name, balance_over)
        losses = step(router)
        assert bool(losses) != issubclass(CONSTRAINTS.get(name), HardConstraint)
        for loss in losses.values():
            assert loss.dim() == 0 and torch.isfinite(loss)
            loss.backward()
            assert torch.isfinite(router.gate.fc.weight.grad).all()
            assert router.gate.fc.weight.grad.abs().sum() > 0

    def test_a_step_without_rows_or_with_one_is_finite(self, name, balance_over):
        router = router_with(name, balance_over)
        for losses in (router.collect(), step(router, images=1)):
            assert all(torch.isfinite(loss) for loss in losses.values())
        assert all(torch.isfinite(x).all() for x in router.state_dict().values())

    def test_a_resumed_run_continues(self, name, balance_over):
        router = router_with(name, balance_over)
        for seed in range(3):
            step(router, seed=seed)
        resumed = router_with(name, balance_over)
        resumed.load_state_dict(router.state_dict())
        for seed in range(3, 6):
            ours, theirs = step(resumed, seed=seed), step(router, seed=seed)
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        for ours, theirs in zip(resumed.state_dict().values(), router.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)

    def test_a_mask_forbids_or_moves_and_leaves_the_logits(self, name, balance_over):
        router = router_with(name, balance_over)
        for seed in range(3):
            step(router, seed=seed)
        (constraint,) = router.constraints.values()
        logits = torch.randn(5, EXPERTS_OF_LAYER, dtype=torch.float64)
        before = logits.clone()
        groups = torch.zeros(5, dtype=torch.long)
        allowed = constraint.mask(logits, groups)
        assert torch.equal(logits, before) and allowed.shape == logits.shape
        assert not allowed.isnan().any() and not torch.isposinf(allowed).any()

    def test_losses_are_in_full_precision_under_autocast(self, name, balance_over):
        router = router_with(name, balance_over).float()
        levels = [torch.randn(4, CHANNELS, s, s) for s in (4, 2)]
        with torch.autocast('cpu', dtype=torch.bfloat16):
            router(*rows_of(levels, 'level'))
            losses = router.collect()
        assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_a_constraint_that_a_gate_brings_is_not_for_configs():
    assert DistillationConstraint.__name__ not in CONSTRAINTS.module_dict


class OwnExpert(nn.Module):
    """What a user may write: two convolutions."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, 5, 3, padding=1), nn.GELU(), nn.Conv2d(5, out_channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize('expert', [OwnExpert, *EXPERTS.module_dict.values()])
class TestExpert:
    def test_rows_do_not_mix_and_inputs_stay(self, expert):
        built = build_named(EXPERTS, {'type': expert}, 'test', in_channels=CHANNELS, out_channels=2).double().eval()
        x = maps()
        whole = built(x)
        assert torch.equal(x, maps())
        for row in range(3):
            torch.testing.assert_close(built(x[row : row + 1]), whole[row : row + 1], rtol=1e-12, atol=1e-12)
        assert built(x[:0]).shape == (0, *whole.shape[1:])

    def test_sorted_dispatch_is_running_all(self, expert):
        layer = build_layer(expert={'type': expert}).eval()
        found = layer(maps(7))
        layer.expert_group.dispatch = 'all'
        torch.testing.assert_close(layer(maps(7)), found, rtol=1e-12, atol=1e-12)

    def test_gradients_of_idle_experts_are_zero_not_none(self, expert):
        layer = build_layer(expert={'type': expert}).train()
        layer(maps(1)).sum().backward()
        grads = [[p.grad for p in one.parameters()] for one in layer.expert_group.experts]
        assert sum(any((g != 0).any() for g in of_expert) for of_expert in grads) == 2
        assert all(g is not None for of_expert in grads for g in of_expert)
