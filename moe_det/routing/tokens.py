"""Rows that are tokens: thousands of them, each a vector, sorted by expert where they lie."""

from __future__ import annotations

import torch

from .dispatch import LevelPlan, copy_to_host
from .routing import Routing
from .rows import RowLayout

TOKEN = 'token'


def token_layout(unit: str, images: int, tokens: int) -> RowLayout:
    """Where the rows of N images lie that have T tokens each: one row per token, or with ``'image'`` one per image."""
    return RowLayout(unit, images, (tokens if unit == TOKEN else 1,), map_sizes=((tokens, 1),))


def plan_tokens(routing: Routing) -> LevelPlan:
    """Sorts rows by expert on their device; only the experts' counts are copied to the host, once.

    Args:
        routing: of R > 0 rows.

    Returns:
        The plan of :func:`~moe_det.routing.dispatch.plan_dispatch`, without ``slices`` and ``choices``.
    """
    rows, top_k = routing.indices.shape
    chosen, order = torch.sort(routing.indices.flatten(), stable=True)
    bounds = torch.arange(routing.num_experts + 2, device=chosen.device)
    counts = copy_to_host(torch.searchsorted(chosen, bounds).diff()).tolist()
    plan = LevelPlan(0, rows, tuple(counts))
    if plan.agrees:
        return plan
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return plan.with_indices(order, order // top_k, places)
