"""Dispatch: runs each chosen expert once per level on a contiguous slice of its rows and puts the outputs back.

Rows are sorted by expert, so that time and activation memory grow with K, not with E: no buffer has an expert axis.
The host learns the slice lengths from one copy per head call. Shape letters: R rows, E experts, K chosen, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .routing import Routing

Mixture = Callable[[Tensor, Tensor, bool], Tensor]


@dataclass(frozen=True)
class LevelPlan:
    """Where the rows of one level go.

    Attributes:
        first_row: position of the level's first row in the routing.
        num_rows: R_l.
        counts: rows of each expert; the last entry counts choices of *no expert*.
        rows: (R_l * K,) row of each sorted assignment, within the level.
        places: (R_l * K,) sorted position of each assignment, in (row, k) order.
    """

    first_row: int
    num_rows: int
    counts: tuple[int, ...]
    rows: Tensor
    places: Tensor

    @property
    def active(self) -> list[int]:
        """Experts that have rows."""
        return [expert for expert, count in enumerate(self.counts[:-1]) if count]


def copy_to_host(counts: Tensor) -> list[int]:
    """The one place where dispatch waits for the device."""
    return counts.tolist()


def plan_dispatch(routings: Sequence[Routing], level_rows: Sequence[int]) -> list[list[LevelPlan]]:
    """Sorts the rows of several routings by expert, with one copy to the host for all of them.

    Args:
        routings: routings over the same rows, for example of the class and of the box branch.
        level_rows: rows of each level.

    Returns:
        For each routing the plan of each level.
    """
    sorted_rows, all_counts = [], []
    for routing in routings:
        top_k = routing.indices.shape[1]
        slots = routing.num_experts + 1
        device = routing.indices.device
        lengths = torch.tensor(level_rows)
        level = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device, non_blocking=True)
        keys = (level[:, None] * slots + routing.indices).flatten()
        order = torch.argsort(keys, stable=True)
        places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
        counts = torch.zeros(len(level_rows) * slots, dtype=torch.long, device=device)
        all_counts.append(counts.scatter_add_(0, keys, torch.ones_like(keys)))
        sorted_rows.append((order.div(top_k, rounding_mode='floor'), places))
    numbers = copy_to_host(torch.cat(all_counts))

    plans, position = [], 0
    for routing, (rows, places) in zip(routings, sorted_rows, strict=True):
        top_k, slots = routing.indices.shape[1], routing.num_experts + 1
        levels, first = [], 0
        for length in level_rows:
            part = slice(first * top_k, (first + length) * top_k)
            counts = tuple(numbers[position : position + slots])
            levels.append(LevelPlan(first, length, counts, rows[part] - first, places[part] - first * top_k))
            first, position = first + length, position + slots
        plans.append(levels)
    return plans


def run_sorted(
    rows: Tensor, routing: Routing, plan: LevelPlan, experts: Sequence[nn.Module], mixture: Mixture
) -> Tensor:
    """Runs the chosen experts of one level, each once, and mixes their outputs.

    Args:
        rows: (R_l, C, H, W).
        routing: holds this level's rows from ``plan.first_row`` on.
        plan: the level's plan.
        experts: E modules.
        mixture: a function of :mod:`moe_det.routing.mixtures`.

    Returns:
        (R_l, C', H', W').
    """
    log_weights = routing.log_weights.narrow(0, plan.first_row, plan.num_rows)
    active = plan.active
    if not plan.num_rows:  # no image, or no region of interest: any expert tells the shape of the output
        return experts[0](rows)
    if all(plan.counts[expert] == plan.num_rows for expert in active):
        # every row chose the same experts (one row, collapsed routing, k = E): no copy of the input is needed
        indices = routing.indices.narrow(0, plan.first_row, plan.num_rows)
        spread = log_weights.new_full((plan.num_rows, routing.num_experts + 1), float('-inf'))
        spread = spread.scatter(1, indices, log_weights)
        outputs = [experts[expert](rows) for expert in active]
        outputs = torch.stack(outputs, dim=1) if len(active) > 1 else outputs[0].unsqueeze(1)  # a stack is a copy
        return mixture(outputs, torch.stack([spread[:, expert] for expert in active], dim=1), routing.sums_to_one)
    lengths = [plan.counts[expert] for expert in active]
    # split, not one narrow per expert: the gradient of a narrow is as large as the whole
    parts = rows.index_select(0, plan.rows[: sum(lengths)]).split(lengths)
    outputs = [experts[expert](part) for expert, part in zip(active, parts, strict=True)]
    if plan.counts[-1]:  # choices of no expert: weight 0, and a zero instead of any expert's output
        outputs.append(outputs[0].new_zeros(plan.counts[-1], *outputs[0].shape[1:]))
    outputs = torch.cat(outputs).index_select(0, plan.places)
    return mixture(outputs.unflatten(0, log_weights.shape), log_weights, routing.sums_to_one)


def run_dense(rows: Tensor, routing: Routing, first_row: int, experts: Sequence[nn.Module], mixture: Mixture) -> Tensor:
    """Runs every expert on every row: same result as :func:`run_sorted`, no data-dependent control flow.

    For export and ``torch.compile``. Costs E experts.

    Args:
        rows: (R_l, C, H, W).
        routing: holds this level's rows from ``first_row`` on.
        first_row: position of the level's first row.
        experts: E modules.
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
    spread = routing.dense(routing.log_weights, float('-inf')).narrow(0, first_row, outputs.shape[0])
    chosen = (spread > float('-inf')).reshape(*spread.shape, *[1] * (outputs.dim() - 2))
    # not a product with 0: an expert that was not chosen must not pass a NaN on
    outputs = torch.where(chosen, outputs, outputs.new_zeros(()))
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
    def forward(ctx, output: Tensor, *parameters: Tensor) -> Tensor:
        ctx.kinds = [(p.dtype, p.device) for p in parameters]
        ctx.shapes = [p.shape for p in parameters]
        return output.view_as(output)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        zeros: list[Tensor | None] = [None] * len(ctx.kinds)
        for kind in set(ctx.kinds):
            at = [i for i, other in enumerate(ctx.kinds) if other == kind]
            lengths = [ctx.shapes[i].numel() for i in at]
            for i, part in zip(at, _lazy_zeros(sum(lengths), *kind).split(lengths), strict=True):
                zeros[i] = part.view(ctx.shapes[i])
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
