"""Small parts shared by the routing tests: a gate that echoes its input, routings from logits, float64 layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from moe_det.routing import ExpertGroup, Gate, Router, Routing, mix_linear, plan_dispatch, rows_of, select


class EchoGate(Gate):
    """The logits are the spatial means of the first E channels, times a learnable scale of 1."""

    def __init__(self, in_channels: int, num_experts: int) -> None:
        super().__init__(in_channels, num_experts)
        self.scale = nn.Parameter(torch.ones(num_experts))

    def logits(self, feature: Tensor) -> Tensor:
        return feature.mean((2, 3))[:, : self.num_experts] * self.scale


@pytest.fixture(autouse=True)
def reproducible() -> None:
    """One thread, as the machine is shared, and one seed for every test."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def echo_gate() -> type[Gate]:
    """The class of a gate whose logits a test can dictate."""
    return EchoGate


@pytest.fixture(scope='session')
def as_maps() -> Callable[..., Tensor]:
    """Returns ``as_maps(logits)``: maps (R, E, 1, 1) that EchoGate turns back into ``logits``."""

    def build(logits: Sequence | Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.as_tensor(logits, dtype=dtype)[:, :, None, None]

    return build


@pytest.fixture(scope='session')
def routing_from() -> Callable[..., Routing]:
    """Returns ``routing_from(logits, top_k, groups, num_groups)``: the routing of unconstrained logits."""

    def build(logits: Tensor, top_k: int, groups: Sequence[int] | None = None, num_groups: int = 1) -> Routing:
        indices, log_weights = select(logits, logits.detach(), top_k, top_k > 1)
        of_row = torch.tensor(groups) if groups is not None else torch.zeros(len(logits), dtype=torch.long)
        return Routing(logits, indices, log_weights, top_k > 1, of_row, num_groups)

    return build


@pytest.fixture(scope='session')
def route_rows() -> Callable[..., Routing]:
    """Returns ``route_rows(router, maps)``: one call of a router on one level."""

    def call(router: Router, maps: Tensor, unit: str = 'level', grid: int = 1) -> Routing:
        return router(*rows_of([maps], unit, grid, router.next_level()))

    return call


@pytest.fixture(scope='session')
def run_layer() -> Callable[..., list[Tensor]]:
    """Returns ``run_layer(router, group, maps, unit, grid)``: rows -> routing -> plan -> experts, rows as they come."""

    def call(router: Router, group: ExpertGroup, maps: list[Tensor], unit: str, grid: int = 1) -> list[Tensor]:
        rows, layout = rows_of(maps, unit, grid)
        routing = router(rows, layout)
        plan = plan_dispatch([routing], layout.level_rows)[0] if group.dispatch == 'sorted' else None
        return group(rows, routing, layout, plan)

    return call


@pytest.fixture(scope='session')
def conv_group() -> Callable[..., ExpertGroup]:
    """Returns ``conv_group(E, in, out)``: E float64 experts, each a 3x3 convolution and a tanh."""

    def build(num_experts: int, inp: int, out: int, mixture=mix_linear, dispatch: str = 'sorted') -> ExpertGroup:
        experts = [nn.Sequential(nn.Conv2d(inp, out, 3, padding=1), nn.Tanh()) for _ in range(num_experts)]
        return ExpertGroup(experts, None, mixture, dispatch).double()

    return build
