"""Mixtures of kernels against convolutions with kernels that were mixed by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_models import multiply_adds
from torch import Tensor, nn

from moe_det.errors import MoEConfigError
from moe_det.routing import ExpertGroup, GAPLinearGate, Router
from moe_det.routing.intervention import Intervention, intervene
from moe_det.routing.kernel_mixture import KernelMixture, mix_weights
from moe_det.routing.rows import rows_of

CHANNELS, OUT = 4, 6
EXACT = dict(rtol=1e-10, atol=1e-12)


def expert() -> nn.Sequential:
    """Two convolutions with a norm and an activation between them."""
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, OUT, 3, padding=1)
    )


def mixture(count: int = 3, make=expert, group=KernelMixture, **kwargs) -> ExpertGroup:
    torch.manual_seed(0)
    return group([make() for _ in range(count)], **kwargs).double().train()


def router(count: int = 3, top_k: int = 3, unit: str = 'level') -> Router:
    gate = GAPLinearGate(CHANNELS, count)
    nn.init.normal_(gate.fc.weight, std=2.0)
    return Router(gate, top_k=top_k, unit=unit, noise=False).double().train()


def maps(images: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    shift = torch.linspace(-1, 1, images, dtype=torch.float64)[:, None, None, None]
    return [(torch.randn(images, CHANNELS, *size).double() + shift).requires_grad_() for size in ((5, 4), (3, 3))]


def run(layer: ExpertGroup, decide: Router, levels: list[Tensor]) -> list[Tensor]:
    rows, layout = rows_of(levels, decide.unit, 1)
    return layer(rows, decide(rows, layout), layout)


def naive(layer: ExpertGroup, decide: Router, levels: list[Tensor]) -> list[Tensor]:
    """Every image of every level with kernels that are added up one by one."""
    fc, outputs = decide.gate.fc, []
    for x in levels:
        of_level = []
        for n in range(len(x)):
            seen = [y[n].mean((1, 2)) for y in levels] if decide.unit == 'image' else [x[n].mean((1, 2))]
            logits = sum(fc.weight @ pooled + fc.bias for pooled in seen) / len(seen)
            chosen = logits.topk(decide.top_k).indices
            weights = logits[chosen].softmax(0)

            def mixed(name: str, weights: Tensor = weights, chosen: Tensor = chosen) -> Tensor:
                return sum(w * layer.experts[e].get_parameter(name) for w, e in zip(weights, chosen, strict=True))

            h = F.conv2d(x[n : n + 1], mixed('0.weight'), mixed('0.bias'), padding=1)
            h = F.relu(F.group_norm(h, 2, mixed('1.weight'), mixed('1.bias')))
            of_level.append(F.conv2d(h, mixed('3.weight'), mixed('3.bias'), padding=1))
        outputs.append(torch.cat(of_level))
    return outputs


@pytest.mark.parametrize('unit', ['level', 'image'])
@pytest.mark.parametrize('top_k', [2, 3])
def test_outputs_and_gradients_match_kernels_that_were_mixed_by_hand(unit, top_k):
    layer, decide, levels = mixture(), router(top_k=top_k, unit=unit), maps()
    parameters = [*layer.parameters(), *decide.parameters(), *levels]
    ours, theirs = run(layer, decide, levels), naive(layer, decide, levels)
    directions = [torch.sin(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape) for y in ours]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **EXACT)
    of_both = [torch.autograd.grad(y, parameters, directions, allow_unused=True) for y in (ours, theirs)]
    for a, b in zip(*of_both, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, **EXACT)
    assert all(g.abs().sum() > 0 for g in of_both[0])


def test_of_bare_convolutions_it_is_the_mixture_of_outputs():
    def make() -> nn.Conv2d:
        return nn.Conv2d(CHANNELS, OUT, 3, padding=1)

    decide, levels = router(), maps()
    kernels, outputs = (mixture(make=make, group=group, dispatch='all') for group in (KernelMixture, ExpertGroup))
    for a, b in zip(run(kernels, decide, levels), run(outputs, decide, levels), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_a_forced_expert_runs_alone():
    layer, decide, levels = mixture(), router(), maps()
    net = nn.ModuleDict({'router': decide, 'experts': layer}).eval()
    with intervene(net, {'router': Intervention(forced=1)}):
        ours = run(layer, decide, levels)
    for a, x in zip(ours, levels, strict=True):
        torch.testing.assert_close(a, layer.experts[1](x), **EXACT)


def test_copies_of_one_expert_are_that_expert_whatever_the_gate_says():
    layer, levels = mixture(), maps()
    for other in layer.experts[1:]:
        other.load_state_dict(layer.experts[0].state_dict())
    for a, x in zip(run(layer, router(), levels), levels, strict=True):
        torch.testing.assert_close(a, layer.experts[0](x), **EXACT)


def test_experts_with_a_common_part_and_a_shared_expert():
    torch.manual_seed(2)
    shared = nn.Conv2d(CHANNELS, OUT, 1).double()
    layer, decide, levels = mixture(common=True), router(), maps()
    with torch.no_grad():
        for parameter in layer.common.parameters():
            parameter.normal_()
    expected = run(layer, decide, levels)
    layer.fold_common()
    layer.shared = shared
    for a, b, x in zip(run(layer, decide, levels), expected, levels, strict=True):
        torch.testing.assert_close(a, b + shared(x), **EXACT)


def test_a_row_costs_one_expert_and_the_mixing():
    layer, decide, levels = mixture(count=5), router(5, 5), [x.detach() for x in maps()]
    rows, layout = rows_of(levels, 'level', 1)
    routing = decide(rows, layout)
    one = sum(multiply_adds(layer.experts[0], x) for x in levels)
    weights = sum(parameter.numel() for parameter in layer.experts[0].parameters())
    assert multiply_adds(layer, rows, routing, layout) == one + len(routing.logits) * 5 * weights


def test_no_rows_leave_every_weight_in_the_graph():
    layer, decide = mixture(), router()
    outputs = run(layer, decide, [x[:0] for x in maps()])
    assert [y.shape for y in outputs] == [(0, OUT, 5, 4), (0, OUT, 3, 3)]
    sum(y.sum() for y in outputs).backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize('norm', [nn.BatchNorm2d(8), nn.InstanceNorm2d(8, track_running_stats=True)], ids=str)
def test_running_statistics_are_refused(norm):
    with pytest.raises(MoEConfigError, match=r"mixes='kernels': 1 is a \w+ with running statistics"):
        KernelMixture([nn.Sequential(nn.Conv2d(CHANNELS, 8, 1), norm) for _ in range(2)])


def test_autocast_keeps_experts_apart_that_differ_by_little():
    layer, decide, levels = mixture().float(), router().float(), [x.detach().float() for x in maps()]
    with torch.no_grad():
        for number, one in enumerate(layer.experts):
            for parameter in one.parameters():
                parameter.fill_(1 + number * 2**-12)  # bfloat16 tells 1 and 1 + 2^-7 apart
    rows, layout = rows_of(levels, 'level', 1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        routing = decide(rows, layout)
        weights = routing.over_experts(routing.weights, 0.0)
        mixed = mix_weights(weights, [one[0].bias for one in layer.experts])
    torch.testing.assert_close(mixed[:, 0], 1 + (weights @ torch.arange(3.0)) * 2**-12, rtol=1e-6, atol=0)


def test_mixed_weights_have_the_gradients_of_the_sum():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    experts = [
        torch.rand(4, 5, generator=generator, dtype=torch.float64).t().requires_grad_(number != 1)
        for number in range(3)
    ]
    torch.testing.assert_close(
        mix_weights(weights, experts), torch.einsum('re,e...->r...', weights, torch.stack(experts)), rtol=1e-12, atol=0
    )
    torch.autograd.gradcheck(lambda w, a, c: mix_weights(w, [a, experts[1], c]), (weights, experts[0], experts[2]))
