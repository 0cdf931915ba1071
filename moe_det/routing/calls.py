"""What a router keeps of a training forward until its step is collected and its backward has run."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UncollectedConstraintError
from .constraint import Constraint
from .routing import Routing

if TYPE_CHECKING:
    from .router import Router

HOOK_LINE = "custom_hooks = [dict(type='MoEHook')]"


def uncollected(label: str, constraints: Iterable[Constraint]) -> UncollectedConstraintError:
    """The error for a step whose constraints were left out."""
    kinds = ', '.join(type(c).__name__ for c in constraints)
    return UncollectedConstraintError(
        f'{label}: {kinds} was not applied, because nobody collected it in this step. Add this line to the '
        f'config (or the hook to its list of custom_hooks): {HOOK_LINE}'
    )


@dataclass
class Call:
    """One training forward, kept until its step is collected and, for checkpointing, until its backward ran.

    Attributes:
        routing: the decision, with its graph; None where nobody collects it.
        groups: balance group of each row.
        shapes: shapes of the rows; a recomputed forward is matched by them.
        allowed: logits after the constraints as they stood.
        noise: the noise that was added, before scaling.
        leaf: logits without graph, where the forward ran without one (re-entrant activation checkpointing).
        collected: whether the step's constraints have been computed.
    """

    routing: Routing | None
    groups: Tensor
    shapes: tuple[torch.Size, ...]
    allowed: Tensor
    noise: Tensor | None
    leaf: Tensor | None
    collected: bool = False


class CollectedBeforeBackward:
    """Gradient hook that refuses a backward pass whose auxiliary loss was left out."""

    def __init__(self, router: Router, call: Call) -> None:
        self.router = weakref.ref(router)
        self.call = weakref.ref(call)

    def __call__(self, gradient: Tensor) -> None:
        router, call = self.router(), self.call()
        if router is not None and call is not None and not call.collected:
            raise router.uncollected()
