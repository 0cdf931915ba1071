"""Dispatch: runs each chosen expert once per level on a contiguous slice of its rows and puts the outputs back.

Rows are sorted by expert, so that time and activation memory grow with K, not with E: no buffer has an expert axis.
The host learns the choices from one copy per head call. Shape letters: R rows, E experts, K chosen, L levels.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .mixtures import mix_linear
from .routing import Routing
from .weighted_rows import WeightedRows, sums_rows

Mixture = Callable[[Tensor, Tensor, bool], Tensor]
Experts = Sequence[Callable[..., Tensor]]  # modules, or what stands for them
_ALIGNMENT = 16  # bytes; where a gradient starts elsewhere, an optimizer's kernels read it number by number


@dataclass(frozen=True)
class LevelPlan:
    """Where the rows of one level go.

    Attributes:
        first_row: position of the level's first row in the routing.
        num_rows: R_l.
        counts: rows of each expert; the last entry counts choices of *no expert*.
        slices: with one choice per row, the experts in the order in which their rows follow each other; empty where
            an expert's rows lie apart.
        order: (R_l * K,) assignment in (row, k) order of each sorted one; None where nothing is rearranged.
        rows: (R_l * K,) row of each sorted assignment, within the level; None as for ``order``.
        places: (R_l * K,) sorted position of each assignment, in (row, k) order; None as for ``order``.
        choices: (R_l, K) experts of each row, E for no expert.
    """

    first_row: int
    num_rows: int
    counts: tuple[int, ...]
    slices: tuple[int, ...] = ()
    order: Tensor | None = None
    rows: Tensor | None = None
    places: Tensor | None = None
    choices: np.ndarray | None = field(default=None, repr=False, compare=False)

    @functools.cached_property
    def active(self) -> list[int]:
        """Experts that have rows."""
        return [expert for expert, count in enumerate(self.counts[:-1]) if count]

    @functools.cached_property
    def agrees(self) -> bool:
        """Whether every row chose the same experts (one row, collapsed routing, K = E)."""
        return all(self.counts[expert] == self.num_rows for expert in self.active)

    @functools.cached_property
    def in_place(self) -> bool:
        """Whether each expert's rows lie together as they are."""
        return bool(self.slices) or self.agrees

    def with_indices(self, order: Tensor, rows: Tensor, places: Tensor) -> LevelPlan:
        """The same plan with its index tensors."""
        other = object.__new__(LevelPlan)
        other.__dict__.update(self.__dict__, order=order, rows=rows, places=places)  # and what was computed
        return other


def copy_to_host(indices: Tensor) -> np.ndarray:
    """The one place where dispatch waits for the device."""
    return indices.cpu().numpy()


def plan_dispatch(routings: Sequence[Routing], level_rows: Sequence[int]) -> list[list[LevelPlan]]:
    """Sorts the rows of several routings by expert, with one copy to the host for all of them.

    There are few rows, so the host sorts them; the indices go back to the device in one transfer.

    Args:
        routings: routings over the same rows, for example of the class and of the box branch.
        level_rows: rows of each level.

    Returns:
        For each routing the plan of each level.
    """
    chosen = copy_to_host(torch.cat([routing.indices.flatten() for routing in routings]))
    plans, orders, position = [], [], 0
    for routing in routings:
        levels, first, top_k = [], 0, routing.indices.shape[1]
        for length in level_rows:
            experts = chosen[position : position + length * top_k]
            levels.append(_plan_level(experts, first, length, routing.num_experts, top_k))
            if not levels[-1].in_place:
                order = np.argsort(experts, kind='stable')
                orders.append(np.stack([order, order // top_k, np.argsort(order)]))
            first, position = first + length, position + length * top_k
        plans.append(levels)
    if not orders:
        return plans
    numbers = torch.from_numpy(np.concatenate(orders, axis=1)).to(routings[0].indices.device, non_blocking=True)
    parts = iter(numbers.split([order.shape[1] for order in orders], dim=1))
    return [[plan if plan.in_place else plan.with_indices(*next(parts)) for plan in levels] for levels in plans]


def _plan_level(experts: np.ndarray, first: int, length: int, num_experts: int, top_k: int) -> LevelPlan:
    """The plan of one level, from its choices in (row, k) order, without index tensors."""
    counts = tuple(np.bincount(experts, minlength=num_experts + 1).tolist())
    slices: list[int] = []
    if top_k == 1:
        slices = [expert for expert, _ in itertools.groupby(experts.tolist())]
    in_turn = tuple(slices) if len(slices) == len(set(slices)) else ()
    return LevelPlan(first, length, counts, in_turn, choices=experts.reshape(length, top_k))


class Rearranged(torch.autograd.Function):
    """Rows in another order, each ``copies`` times. Its gradient is gathered as well.

    Autograd's own would fill zeros and add to them, on a GPU in an order that varies.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, indices: Tensor, back: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.copies = copies
        return rows.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradient.index_select(0, ctx.saved_tensors[0])
        return gradient if ctx.copies == 1 else gradient.unflatten(0, (-1, ctx.copies)).sum(1), None, None, None


def run_sorted(rows: Tensor, routing: Routing, plan: LevelPlan, experts: Experts, mixture: Mixture) -> Tensor:
    """Runs the chosen experts of one level, each once, and mixes their outputs.

    Args:
        rows: (R_l, C, H, W).
        routing: holds this level's rows from ``plan.first_row`` on.
        plan: the level's plan.
        experts: E of them.
        mixture: a function of :mod:`moe_det.routing.mixtures`.

    Returns:
        (R_l, C', H', W').
    """
    if not plan.num_rows:  # no image, or no region of interest: any expert tells the shape of the output
        return experts[0](rows)
    outputs = {expert: experts[expert](part) for expert, part in _parts_by_expert(rows, plan).items()}
    return _joined(outputs, routing, plan, mixture)


def _parts_by_expert(rows: Tensor, plan: LevelPlan) -> dict[int, Tensor]:
    """The rows of each expert; nothing is copied where they are the whole level, or follow each other."""
    none = len(plan.counts) - 1
    if plan.agrees:
        return dict.fromkeys(plan.active, rows)
    experts: Sequence[int] = plan.slices
    if not experts:
        experts = [expert for expert, count in enumerate(plan.counts) if count]
        assert plan.rows is not None  # as wherever rows are rearranged
        rows = Rearranged.apply(rows, plan.rows, plan.places, len(plan.rows) // plan.num_rows)
    # split, not one narrow per expert: the gradient of a narrow is as large as the whole
    parts = rows.split([plan.counts[expert] for expert in experts])
    return {expert: part for expert, part in zip(experts, parts, strict=True) if expert != none}


def _joined(outputs: dict[int, Tensor], routing: Routing, plan: LevelPlan, mixture: Mixture) -> Tensor:
    """Puts the experts' outputs back into the order of the rows and mixes them."""
    log_weights = routing.log_weights.narrow(0, plan.first_row, plan.num_rows)
    active, none = plan.active, len(plan.counts) - 1
    if plan.agrees:
        indices = routing.indices.narrow(0, plan.first_row, plan.num_rows)
        spread = log_weights.new_full((plan.num_rows, routing.num_experts + 1), float('-inf'))
        spread = spread.scatter(1, indices, log_weights)
        found = [outputs[expert] for expert in active]
        stacked = torch.stack(found, dim=1) if len(found) > 1 else found[0].unsqueeze(1)  # a stack is a copy
        return mixture(stacked, torch.stack([spread[:, expert] for expert in active], dim=1), routing.sums_to_one)
    if plan.counts[none]:  # choices of no expert: weight 0, and a zero instead of any expert's output
        like = outputs[active[0]]
        outputs = {**outputs, none: like.new_zeros(plan.counts[none], *like.shape[1:])}
    joined = torch.cat([outputs[expert] for expert in plan.slices or sorted(outputs)])
    if not plan.slices:
        if mixture is mix_linear and sums_rows(joined):
            weights = log_weights.exp().to(joined.dtype)
            return WeightedRows.apply(joined, weights, plan.places, plan.order, plan.rows)
        joined = Rearranged.apply(joined, plan.places, plan.order, 1)
    return mixture(joined.unflatten(0, log_weights.shape), log_weights, routing.sums_to_one)


def run_unsorted(rows: Tensor, routing: Routing, first_row: int, experts: Experts, mixture: Mixture) -> Tensor:
    """Runs every expert on every row: same result as :func:`run_sorted`, no data-dependent control flow.

    For export and ``torch.compile``. Costs E experts.

    Args:
        rows: (R_l, C, H, W).
        routing: holds this level's rows from ``first_row`` on.
        first_row: position of the level's first row.
        experts: E of them.
        mixture: a function of :mod:`moe_det.routing.mixtures`.

    Returns:
        (R_l, C', H', W').
    """
    return mix_all(torch.stack([expert(rows) for expert in experts], dim=1), routing, first_row, mixture)


def mix_all(outputs: Tensor, routing: Routing, first_row: int, mixture: Mixture) -> Tensor:
    """Mixes the outputs of all experts with the weights of the chosen ones.

    Args:
        outputs: (R_l, E, C', H', W').
        routing: holds this level's rows from ``first_row`` on.
        first_row: position of the level's first row.
        mixture: a function of :mod:`moe_det.routing.mixtures`.

    Returns:
        (R_l, C', H', W').
    """
    spread = routing.over_experts(routing.log_weights, float('-inf')).narrow(0, first_row, outputs.shape[0])
    chosen = (spread > float('-inf')).reshape(*spread.shape, *[1] * (outputs.dim() - 2))
    # not a product with 0: an expert that was not chosen must not pass a NaN on
    outputs = torch.where(chosen, outputs, outputs.new_zeros(()))
    if routing.sums_to_one and routing.indices.shape[1] == 1:
        # one expert with its whole weight: a mixture that normalises would lose the gate's gradient
        log_weights = routing.log_weights.narrow(0, first_row, outputs.shape[0])
        return mixture(outputs.sum(1, keepdim=True), log_weights, True)
    return mixture(outputs, spread, routing.sums_to_one)


def mix_chosen(outputs: Tensor, routing: Routing, first_row: int, mixture: Mixture) -> Tensor:
    """Mixes the chosen ones of all experts' outputs, as :func:`run_sorted` does.

    Args:
        outputs: (R_l, E, C', H', W').
        routing: holds this level's rows from ``first_row`` on.
        first_row: position of the level's first row.
        mixture: a function of :mod:`moe_det.routing.mixtures`.

    Returns:
        (R_l, C', H', W').
    """
    rows, experts = outputs.shape[:2]
    indices = routing.indices.narrow(0, first_row, rows)
    none = indices == experts
    chosen = outputs[torch.arange(rows, device=outputs.device)[:, None], indices.clamp_max(experts - 1)]
    chosen = chosen.masked_fill(none.reshape(*none.shape, *[1] * (outputs.dim() - 2)), 0.0)
    return mixture(chosen, routing.log_weights.narrow(0, first_row, rows), routing.sums_to_one)


class _TouchIdle(torch.autograd.Function):
    """Identity that gives the parameters of idle experts a zero gradient without reading them."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *parameters: Tensor) -> Tensor:
        ctx.kinds = [(p.dtype, p.device) for p in parameters]
        ctx.shapes = [p.shape for p in parameters]
        return output.detach()  # no view in the eyes of autograd: an activation may change it in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        zeros: list[Tensor | None] = [None] * len(ctx.kinds)
        for kind in set(ctx.kinds):
            at = [i for i, other in enumerate(ctx.kinds) if other == kind]
            step = max(1, _ALIGNMENT // kind[0].itemsize)
            lengths = [-(-ctx.shapes[i].numel() // step) * step for i in at]
            for i, part in zip(at, _lazy_zeros(sum(lengths), *kind).split(lengths), strict=True):
                zeros[i] = part[: ctx.shapes[i].numel()].view(ctx.shapes[i])
        return gradient, *zeros


def _lazy_zeros(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros in one piece: one kernel on a GPU, and on a CPU memory that comes from the system as zeros, unwritten.

    Of many experts most are idle, and their zeros are more than all other gradients together.
    """
    if device.type != 'cpu':
        return torch.zeros(length, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(length * dtype.itemsize, dtype=np.uint8)).view(dtype)


def touch_idle(output: Tensor, idle: Sequence[nn.Module]) -> Tensor:
    """Makes idle experts part of the graph with a zero gradient.

    Data-parallel training without ``find_unused_parameters`` then works, and an idle expert is treated alike in one
    process and in several: its gradient is zero, so momentum and weight decay go on as for any parameter.
    """
    parameters = [p for expert in idle for p in expert.parameters() if p.requires_grad]
    if not parameters or not torch.is_grad_enabled():
        return output
    return _TouchIdle.apply(output, *parameters)
