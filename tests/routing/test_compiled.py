"""Dense dispatch compiles as one graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe_det.routing import (
    ExpertGroup,
    GAPLinearGate,
    KLConstraint,
    Router,
    SelectionBiasConstraint,
    join_patches,
    mix_probabilities,
    rows_of,
)


class Layer(nn.Module):
    """Router and experts over the levels of a pyramid."""

    def __init__(self, top_k: int, unit: str, constraint, mixture, over: str, **router) -> None:
        super().__init__()
        self.router = Router(
            GAPLinearGate(3, 4), [constraint()], top_k=top_k, unit=unit, balance_over=over, num_levels=2, **router
        )
        experts = [nn.Conv2d(3, 2, 3, padding=1) for _ in range(4)]
        self.group = ExpertGroup(experts, dispatch='all', slots=self.router.slots)
        if mixture is not None:
            self.group.mixture = mixture

    def forward(self, maps):
        rows, layout = rows_of(maps, self.router.unit, 2)
        outputs = self.group(rows, self.router(rows, layout), layout)
        if self.router.unit == 'patch':
            outputs = [join_patches(y, *x.shape[2:], 2) for y, x in zip(outputs, maps, strict=True)]
        return outputs


@pytest.mark.parametrize(
    ('top_k', 'unit', 'constraint', 'mixture', 'over', 'router'),
    [
        (2, 'level', KLConstraint, None, 'all', {}),
        (1, 'patch', SelectionBiasConstraint, mix_probabilities, 'level', {}),
        (2, 'image', SelectionBiasConstraint, mix_probabilities, 'all', {}),
        (2, 'level', SelectionBiasConstraint, None, 'all', {'slots': 2}),
        (1, 'level', KLConstraint, mix_probabilities, 'all', {'weighting': 'straight_through'}),
    ],
)
def test_dense_evaluation_is_one_graph(top_k, unit, constraint, mixture, over, router):
    torch._dynamo.reset()
    layer = Layer(top_k, unit, constraint, mixture, over, **router).eval()
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        for _ in range(12):  # more calls than the compiler would trace anew
            maps = [torch.randn(2, 3, 5, 4), torch.randn(2, 3, 2, 3)]
            for one, other in zip(compiled(maps), layer(maps), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ('top_k', 'mixture', 'router'),
    [(2, None, {}), (2, None, {'slots': 2}), (1, mix_probabilities, {'weighting': 'straight_through'})],
)
def test_unconstrained_training_is_one_graph(top_k, mixture, router):
    torch._dynamo.reset()
    layer = Layer(top_k, 'level', KLConstraint, mixture, 'all', **router).train()
    layer.router.constraints.clear()
    layer.router.noise = None
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    maps = [torch.randn(2, 3, 5, 4), torch.randn(2, 3, 2, 3)]
    gradients = []
    for module in (layer, compiled):
        layer.zero_grad()
        sum(y.square().sum() for y in module(maps)).backward()
        gradients.append([p.grad for p in layer.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
