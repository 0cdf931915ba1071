"""Interventions: overriding the gate's choice of experts, to see what an expert does.

Utilisation and specialisation are observations; only changing the routing shows what an expert causes.
Interventions act in eval mode alone, so that a forgotten one cannot reach training.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .route_table import RouteTable
from .selection import Choose, select

if TYPE_CHECKING:
    from .router import Router


@dataclass(frozen=True)
class Intervention:
    """How a layer's routing is changed.

    Attributes:
        forced: the only expert for every row, or several that share every row equally. Together they get the weight
            that the row's chosen experts had: 1 where weights sum to 1, else (K = 1) the gate's probability of its own
            choice, the scale that experts learned with. With slots they replace the choice in their own slots alone.
        knocked_out: an expert that no row may choose; the next best (of its slot) takes its place and weights are
            renormalised.
        top_k: another number of chosen experts; not with slots.
        routes: decisions to replay instead of the gate's; none of the others can be given with them.
    """

    forced: int | tuple[int, ...] | None = None
    knocked_out: int | None = None
    top_k: int | None = None
    routes: RouteTable | None = field(default=None, hash=False)

    @property
    def forced_experts(self) -> tuple[int, ...]:
        """The experts that share every row; empty where none is forced."""
        if self.forced is None:
            return ()
        return self.forced if isinstance(self.forced, tuple) else (self.forced,)

    def check(self, label: str, num_experts: int, slots: int = 1) -> None:
        """Raises ValueError if a layer with ``num_experts`` experts in ``slots`` cannot be changed so."""
        if self.forced == () or len(set(self.forced_experts)) < len(self.forced_experts):
            raise ValueError(f'{label}: forced={self.forced}: expected one expert or several different ones')
        named = [('forced', expert) for expert in self.forced_experts]
        for name, expert in [*named, ('knocked_out', self.knocked_out)]:
            if expert is not None and not 0 <= expert < num_experts:
                raise ValueError(f'{label}: {name}={expert}: expected an expert from 0 to {num_experts - 1}')
        if self.knocked_out is not None and num_experts == 1:
            raise ValueError(f'{label}: the only expert cannot be knocked out')
        if self.knocked_out is not None and num_experts == slots:
            raise ValueError(f'{label}: knocked_out={self.knocked_out}: the only copy of a shard cannot be knocked out')
        if self.top_k is not None and slots > 1:
            raise ValueError(f'{label}: top_k={self.top_k}: a row runs one copy of each of {slots} shards')
        if self.top_k is not None and not 1 <= self.top_k <= num_experts:
            raise ValueError(f'{label}: top_k={self.top_k}: expected 1 to {num_experts}')
        if self.routes is None:
            return
        if (self.forced, self.knocked_out, self.top_k) != (None, None, None):
            raise ValueError(f'{label}: routes are whole decisions: give no forced, knocked_out or top_k with them')
        if self.routes.num_experts != num_experts:
            raise ValueError(f'{label}: routes of {self.routes.num_experts} experts for a layer with {num_experts}')
        if self.routes.slots != slots:
            raise ValueError(f'{label}: routes in {self.routes.slots} slots for a layer with {slots}')

    def chosen(self, top_k: int) -> int:
        """Experts that a row then runs in a layer without slots that was trained to choose ``top_k``."""
        return len(self.forced_experts) or self.top_k or top_k

    def changing(self, choose: Choose) -> Choose:
        """A layer's way of choosing, changed."""
        return functools.partial(self.select, choose=choose)

    def select(
        self,
        logits: Tensor,
        allowed: Tensor,
        top_k: int,
        sums_to_one: bool,
        slots: int = 1,
        straight_through: bool = False,
        choose: Choose = select,
    ) -> tuple[Tensor, Tensor]:
        """As ``choose``, changed."""
        if self.routes is not None:
            return self.routes.next_call(logits)
        if self.top_k not in (None, top_k):
            top_k, straight_through = self.top_k, False
        if self.knocked_out is not None:
            without = allowed.clone()
            without[:, self.knocked_out] = float('-inf')
            # a row whose other experts a hard constraint forbids still may not fall back on this one
            rest = logits.clone()
            rest[:, self.knocked_out] = float('-inf')
            only = (
                torch.isneginf(without)
                .unflatten(1, (slots, -1))
                .all(dim=2)
                .repeat_interleave(logits.shape[1] // slots, dim=1)
            )
            allowed = torch.where(only, rest, without)
            top_k = min(top_k, logits.shape[1] - 1)
        indices, log_weights = choose(logits, allowed, top_k, sums_to_one, slots, straight_through)
        if self.forced is not None and slots > 1:
            return self._force_in_slots(indices, log_weights, logits.shape[1] // slots)
        if self.forced is not None:
            experts = indices.new_tensor(self.forced_experts)
            shared = torch.logsumexp(log_weights, dim=1, keepdim=True) - math.log(len(experts))
            return experts.expand(len(indices), -1), shared.expand(-1, len(experts))
        return indices, log_weights

    def _force_in_slots(self, indices: Tensor, log_weights: Tensor, copies: int) -> tuple[Tensor, Tensor]:
        """The (R, S) choice with the forced experts in their slots: one column for each of them, in order."""
        columns = []
        for slot in range(indices.shape[1]):
            forced = sorted(expert for expert in self.forced_experts if expert // copies == slot)
            if not forced:
                columns.append((indices[:, slot], log_weights[:, slot]))
            for expert in forced:
                choice = torch.full_like(indices[:, slot], expert)
                columns.append((choice, torch.full_like(log_weights[:, slot], -math.log(len(forced)))))
        chosen, weights = zip(*columns, strict=True)
        return torch.stack(chosen, dim=1), torch.stack(weights, dim=1)


@contextmanager
def intervene(model: nn.Module, interventions: Mapping[str, Intervention]) -> Iterator[None]:
    """Changes the routing of a model's layers while inside; the innermost of several changes a layer.

    Args:
        model: a model in eval mode.
        interventions: by layer path, as :func:`~moe_det.routing.router.find_routers` names them.

    Raises:
        KeyError: the model has no such layer.
        ValueError: an expert or a K that the layer does not have, or routes of another number of experts
            or slots.
    """
    from .router import find_routers

    routers: dict[str, Router] = find_routers(model)
    for layer, intervention in interventions.items():
        if layer not in routers:
            raise KeyError(f'no MoE layer {layer!r}; the model has {", ".join(routers) or "none"}')
        intervention.check(layer, routers[layer].num_experts, routers[layer].slots)
    before = {layer: routers[layer].intervention for layer in interventions}
    try:
        for layer, intervention in interventions.items():
            routers[layer].intervention = intervention
        yield
    finally:
        for layer, earlier in before.items():
            routers[layer].intervention = earlier
