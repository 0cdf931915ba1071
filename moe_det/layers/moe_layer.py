"""A gate, constraints, experts and dispatch behind the interface of one module: map in, map out."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..errors import MoEConfigError
from ..routing.dispatch import plan_dispatch
from ..routing.rows import HALO, join_patches, rows_of
from .settings import MoESettings


class MoELayer(nn.Module):
    """Replaces one module of a network by E experts of which each routing row runs K.

    The layer may be called several times in a step (a tower convolution serves all levels): rows are balanced
    together when the step is collected.

    Args:
        settings: the checked MoE keys.
        in_channels: C, channels of the map.
        make_expert: builds one expert (R, C, H, W) -> (R, C', H', W').
        where: the config key of the settings, for messages.
        num_levels: calls in one step; balance inside levels keeps state for each.
        out_channels: C', ``in_channels`` by default; an attentive gate must know it.
        halo: pixels of its neighbours that a patch sees; with an expert's full reach, patches are exact.

    Raises:
        MoEConfigError: balance inside levels for a layer that sees one level.
    """

    def __init__(
        self,
        settings: MoESettings,
        in_channels: int,
        make_expert: Callable[[], nn.Module],
        where: str,
        num_levels: int = 1,
        out_channels: int | None = None,
        halo: int = HALO,
    ) -> None:
        super().__init__()
        if settings.balance_over == 'level' and num_levels == 1:
            raise MoEConfigError(
                f"{where}.balance_over='level': the layer sees one level in a step; use 'all', or set num_levels "
                'where it is called once per level'
            )
        self.settings, self.halo = settings, halo
        self.router = settings.build_router(in_channels, where, num_levels, key_channels=out_channels or in_channels)
        make_expert = settings.expert_maker(make_expert, where, in_channels, out_channels or in_channels)
        self.expert_group = settings.build_experts(make_expert)
        if self.router is not None and self.router.gate.freezes_experts:
            self.expert_group.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        if self.router is None:
            return self.expert_group([x], None, None)[0]
        grid = self.settings.grid or 1
        rows, layout = rows_of([x], self.settings.unit, grid, self.router.next_level(), self.halo)
        if self.router.needs_keys:
            output = self.expert_group.run_and_route(rows, self.router, rows, layout)[0]
        else:
            routing = self.router(rows, layout)
            plan = None
            if self.settings.sorts:
                plan = plan_dispatch([routing], layout.level_rows)[0]
            output = self.expert_group(rows, routing, layout, plan)[0]
        if layout.unit == 'patch':
            output = join_patches(output, x.shape[2], x.shape[3], grid, self.halo)
        return output
