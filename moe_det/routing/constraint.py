"""The one interface of soft and hard constraints."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

from torch import Tensor, nn

from .routing import Routing


def checked_number(owner: object, key: str, value: object, minimum: float = 0.0) -> float:
    """Returns ``value`` as a float.

    Raises:
        ValueError: it is no finite number or smaller than ``minimum``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or value < minimum:
        raise ValueError(f'{key}={value!r}: expected a number >= {minimum:g}')
    return float(value)


class Constraint(nn.Module):
    """Keeps all experts in use. Soft constraints add a loss, hard ones forbid or discourage over-used experts.

    A router calls :meth:`mask` for each batch of rows, and :meth:`loss` and :meth:`update` once per training step
    with the rows of the whole step. With gradient accumulation :meth:`loss` is called for each forward and
    :meth:`update` once per step of the optimizer.

    Attributes:
        key: short name; the loss appears as ``loss_moe_<key>``.
        learned_noise: whether the gate gets learned noise while it trains under this constraint (arXiv 2204.10598:
            soft constraints do, hard ones do not).
        samples: what the constraint asks to know of each row beside its decision, a kind of
            :class:`~moe_det.routing.samples.RowSamples`; None for nothing.
        slots: groups of experts of which a row runs one each; the router sets it. All of them get the same total
            weight, so that a balance over all experts is one inside each group.
        scheduled: whether a schedule of the balance changes the loss's weight.
    """

    key: str = 'constraint'
    learned_noise: bool = True
    samples: str | None = None
    slots: int = 1
    scheduled: bool = False

    def prepare(self, num_experts: int, num_groups: int) -> None:
        """Allocates state for E experts and G balance groups; called once, when the router is built."""

    def apply(self, fn: Callable[[nn.Module], None]) -> Constraint:
        """Leaves the constraint as it is: initialisers visit every module, and take ``weight`` for a tensor."""
        return self

    def mask(self, logits: Tensor, groups: Tensor) -> Tensor:
        """Returns the (R, E) logits that the choice is made from; -inf forbids an expert."""
        return logits

    def loss(self, routing: Routing) -> Tensor | None:
        """Returns the auxiliary loss of a step's rows, a scalar with gradient, or None."""
        return None

    def update(self, routing: Routing) -> None:
        """Moves the constraint's state by one step.

        Args:
            routing: rows of the step's last forward; its ``usage`` is that of the whole step.
        """

    def after_dropping_experts(self) -> None:
        """Makes the state that of a layer which never had the experts that were just dropped from it."""
