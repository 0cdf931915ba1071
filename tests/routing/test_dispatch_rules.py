"""Rules of dispatch: who runs, what leaks, what idle experts get, and what an image depends on."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from moe_det.routing import (
    ConvGAPGate,
    ExpertGroup,
    GAPLinearGate,
    Router,
    TwoConvGAPGate,
    join_patches,
    mix_linear,
    mix_probabilities,
    touch_idle,
)

EXACT = {'rtol': 1e-12, 'atol': 1e-12}


def pyramid(images: int, channels: int = 3) -> list[Tensor]:
    """Two levels of different size, with images that the gate can tell apart."""
    offset = torch.linspace(-1, 1, images, dtype=torch.float64)[:, None, None, None]
    sizes = ((5, 4), (2, 3))
    return [(torch.randn(images, channels, *s, dtype=torch.float64) + offset).requires_grad_() for s in sizes]


def test_each_chosen_expert_runs_once_per_level_and_the_others_never(run_layer, conv_group):
    gate = GAPLinearGate(3, 4).double()
    gate.fc.weight.data.zero_()
    gate.fc.weight.data[0, 0], gate.fc.weight.data[2, 0] = 100.0, -100.0  # the sign of channel 0 decides
    gate.fc.bias.data.copy_(torch.tensor([0.0, -1.0, 0.0, -1.0]))
    router = Router(gate, top_k=1).train()
    group = conv_group(4, 3, 2)
    calls = Counter()
    for number, expert in enumerate(group.experts):
        expert.register_forward_hook(lambda *_, number=number: calls.update([number]))
    maps = [torch.randn(4, 3, 4, 4).double(), torch.randn(4, 3, 2, 2).double(), torch.ones(4, 3, 2, 2).double()]
    for level in maps[:2]:
        level[:2, 0], level[2:, 0] = 1.0, -1.0
    run_layer(router, group, maps, 'level')
    # levels 0 and 1 hold both signs, level 2 only the positive one
    assert calls == {0: 3, 2: 2}


class NaNExpert(nn.Conv2d):
    """Weights that poison whatever they touch."""

    def __init__(self) -> None:
        super().__init__(3, 2, 3, padding=1)
        for parameter in self.parameters():
            nn.init.constant_(parameter, float('nan'))


@pytest.mark.parametrize('mixture', [mix_linear, mix_probabilities])
@pytest.mark.parametrize('rows', ['mixed', 'collapsed', 'one'])
@pytest.mark.parametrize('top_k', [1, 2])
def test_an_unchosen_expert_with_nan_weights_leaks_nowhere(top_k, rows, mixture, run_layer):
    gate = GAPLinearGate(3, 5).double()
    gate.fc.bias.data[4] = -1e4  # expert 4 is never chosen
    if rows == 'collapsed':
        gate.fc.weight.data.zero_()
    router = Router(gate, top_k=top_k).train()
    healthy = [nn.Conv2d(3, 2, 3, padding=1) for _ in range(4)]
    group = ExpertGroup([*healthy, NaNExpert()], None, mixture).double().train()
    maps = [torch.randn(1 if rows == 'one' else 6, 3, 4, 4, dtype=torch.float64, requires_grad=True)]
    for group.dispatch in ('sorted', 'all'):
        (output,) = run_layer(router, group, maps, 'level')
        assert torch.isfinite(output).all(), group.dispatch
        if group.dispatch == 'sorted':
            weighted = (output * torch.randn_like(output)).sum()
            for gradient in torch.autograd.grad(weighted, [*maps, *gate.parameters(), *group.parameters()]):
                assert torch.isfinite(gradient).all()


def test_idle_experts_get_zero_gradients(run_layer, conv_group):
    gate = GAPLinearGate(3, 4).double()
    gate.fc.bias.data.copy_(torch.tensor([0.0, 1e3, 0.0, -1e3]))
    router = Router(gate, top_k=1).train()
    group = conv_group(4, 3, 2).train()
    sum(y.square().sum() for y in run_layer(router, group, pyramid(2), 'level')).backward()
    for number, expert in enumerate(group.experts):
        for parameter in expert.parameters():
            assert parameter.grad is not None
            assert (parameter.grad == 0).all() == (number != 1)
    # the zeros do not touch a frozen parameter, and evaluation adds nothing
    group.experts[0][0].weight.requires_grad_(False)
    group.zero_grad()
    sum(y.sum() for y in run_layer(router, group, pyramid(2), 'level')).backward()
    assert group.experts[0][0].weight.grad is None
    group.eval().zero_grad()
    sum(y.sum() for y in run_layer(router.eval(), group, pyramid(2), 'level')).backward()
    assert group.experts[2][0].weight.grad is None


@pytest.mark.parametrize('unit', ['level', 'image', 'patch'])
def test_no_images(unit, run_layer, conv_group):
    router = Router(GAPLinearGate(3, 4).double(), top_k=2, unit=unit).train()
    group = conv_group(4, 3, 2).train()
    maps = [torch.zeros(0, 3, 4, 6, dtype=torch.float64, requires_grad=True)]
    for group.dispatch in ('sorted', 'all'):
        (output,) = run_layer(router, group, maps, unit, 2)
        assert output.shape[:2] == (0, 2)
        group.zero_grad()
        output.sum().backward()
        assert all((p.grad == 0).all() for p in group.parameters())


@pytest.mark.parametrize('gate_kind', [GAPLinearGate, ConvGAPGate, TwoConvGAPGate])
@pytest.mark.parametrize('unit', ['level', 'image', 'patch'])
@pytest.mark.parametrize('dispatch', ['sorted', 'all'])
def test_an_image_does_not_depend_on_its_batch(dispatch, unit, gate_kind, run_layer, conv_group):
    gate = gate_kind(3, 4).double()
    router = Router(gate, top_k=2, unit=unit).eval()
    group = conv_group(4, 3, 2, dispatch=dispatch).eval()
    maps = [m.detach() for m in pyramid(4)]
    together = run_layer(router, group, maps, unit, 2)
    if unit == 'patch':
        together = [join_patches(y, *m.shape[2:], 2) for y, m in zip(together, maps, strict=True)]
    for image in range(4):
        own = [m[image : image + 1] for m in maps]
        alone = run_layer(router, group, own, unit, 2)
        if unit == 'patch':
            alone = [join_patches(y, *m.shape[2:], 2) for y, m in zip(alone, own, strict=True)]
        for batch, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batch[image : image + 1], single, **EXACT)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_zero_gradients_of_idle_experts_start_where_vector_kernels_can_read(dtype):
    idle = [nn.ParameterList([nn.Parameter(torch.ones(n, dtype=dtype)) for n in (1, 3, 4, 5, 36, 7)])]
    touch_idle(torch.ones(3, requires_grad=True), idle).sum().backward()
    assert all(parameter.grad.data_ptr() % 16 == 0 and not parameter.grad.any() for parameter in idle[0])


def test_zero_gradients_of_idle_experts_are_their_own():
    idle = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(5, 1, dtype=dtype)) for dtype in (torch.float64, torch.float16)]
    idle[0][0].bias.requires_grad_(False)
    parameters = [p for expert in idle for p in expert.parameters() if p.requires_grad]
    x = torch.ones(3, requires_grad=True)
    for _ in range(2):  # the second step adds to what the first left
        touch_idle(x * 2, idle).sum().backward()
    assert x.grad.tolist() == [4.0] * 3 and idle[0][0].bias.grad is None
    for number, parameter in enumerate(parameters):
        gradient = parameter.grad
        assert gradient.shape == parameter.shape and gradient.dtype == parameter.dtype and gradient.is_contiguous()
        assert (gradient == 0).all()
        gradient += 1 + number  # writes into no other's
    for number, parameter in enumerate(parameters):
        assert (parameter.grad == 1 + number).all()
    assert len(parameters) == 7
    torch.optim.SGD(parameters, lr=1.0).step()
    with torch.no_grad():
        assert touch_idle(x, idle) is x
