"""Experts on rows that are vectors, such as tokens and regions of interest."""

from __future__ import annotations

from torch import Tensor

from ..errors import MoEConfigError
from ..routing.experts import ExpertGroup
from ..routing.router import Router
from ..routing.rows import RowLayout
from ..routing.tokens import plan_tokens
from .settings import MoESettings


class FlatExperts(ExpertGroup):
    """Experts on rows (R, C), or (R, T, C) where a row has several vectors."""

    @staticmethod
    def pool(features: Tensor) -> Tensor:
        """(R, C) or (R, T, C) -> (R, C)."""
        return features if features.dim() == 2 else features.mean(1)


def check_flat(settings: MoESettings, where: str, row: str) -> None:
    """Raises MoEConfigError for keys that such rows have no use for; ``row`` names one in messages."""
    if settings.balance_over == 'level':
        raise MoEConfigError(f"{where}.balance_over='level': {row}s are balanced together; use 'all'")
    if settings.mixes != 'outputs':
        raise MoEConfigError(f'{where}.mixes={settings.mixes!r}: weights of its own for every {row}; take it out')


def mixed(group: ExpertGroup, router: Router, rows: Tensor, seen: Tensor, layout: RowLayout) -> Tensor:
    """Routes rows and mixes what their experts compute.

    Args:
        group: the experts.
        router: decides.
        rows: (R, C) or (R, T, C), R > 0, for the experts.
        seen: (R, C, T, 1), the same for the gate.
        layout: where the rows lie.

    Returns:
        As ``rows``, with the experts' output channels.
    """
    if router.needs_keys:
        return group.run_and_route([rows], router, [seen], layout)[0]
    routing = router([seen], layout)
    plan = [plan_tokens(routing)] if group.dispatch == 'sorted' else None
    return group([rows], routing, layout, plan)[0]
