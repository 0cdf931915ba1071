"""The one interface of soft and hard constraints."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, ValuesView
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .routing import Routing
from .rows import RowLayout

FORBIDDEN = -1e30  # the logit of an expert that a row does not have: probability 0, and finite, unlike -inf


class Constraint(nn.Module):
    """Keeps all experts in use. Soft constraints add a loss, hard ones forbid or discourage over-used experts.

    A router calls :meth:`mask` for each batch of rows, and :meth:`loss` and :meth:`update` once per training step
    with the rows of the whole step. With gradient accumulation :meth:`loss` is called for each forward and
    :meth:`update` once per step of the optimizer.

    Attributes:
        key: short name; the loss appears as ``loss_moe_<key>``.
        learned_noise: whether the gate gets learned noise while it trains under this constraint (arXiv 2204.10598:
            soft constraints do, hard ones do not).
        samples: what the constraint needs to know about each row besides its decision, a kind of
            :class:`~moe_det.routing.samples.RowSamples`; None for nothing.
        slots: groups of experts of which a row runs one each; the router sets it. All of them get the same total
            weight, so that a balance over all experts is one inside each group.
        top_k: K of the router, which sets it.
        scheduled: whether a schedule of the balance changes the loss's weight.
    """

    key: str = 'constraint'
    learned_noise: bool = True
    samples: str | None = None
    slots: int = 1
    top_k: int = 1
    scheduled: bool = False

    def prepare(self, num_experts: int, num_groups: int) -> None:
        """Allocates state for E experts and G balance groups; called once, when the router is built."""

    def apply(self, fn: Callable[[nn.Module], None]) -> Constraint:
        """Leaves the constraint as it is: initialisers visit every module, and take ``weight`` for a tensor."""
        return self

    def restrict(self, logits: Tensor, layout: RowLayout) -> Tensor:
        """Returns the (R, E) logits of the gate; ``FORBIDDEN`` takes an expert from a row, in weights and choice."""
        return logits

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


class Constraints(nn.ModuleDict):
    """The constraints of a router by their keys.

    Args:
        num_experts: E.
        num_groups: G.
        slots: of the router.
        top_k: K.

    Attributes:
        asked: what they ask to know of each row; nothing else is computed or kept.
    """

    if TYPE_CHECKING:  # torch's ModuleDict does not say what it holds

        def __getitem__(self, key: str) -> Constraint: ...
        def items(self) -> ItemsView[str, Constraint]: ...
        def values(self) -> ValuesView[Constraint]: ...

    def __init__(self, num_experts: int, num_groups: int, slots: int, top_k: int) -> None:
        super().__init__()
        self.prepared_for = num_experts, num_groups, slots, top_k
        self.asked: frozenset[str] = frozenset()

    def add(self, constraints: Iterable[Constraint]) -> None:
        """Adds constraints, and prepares them for the router.

        Raises:
            ValueError: two of one kind.
        """
        num_experts, num_groups, slots, top_k = self.prepared_for
        for constraint in constraints:
            if constraint.key in self:
                raise ValueError(f'two constraints of the kind {constraint.key!r}; give each kind once')
            constraint.slots, constraint.top_k = slots, top_k
            constraint.prepare(num_experts, num_groups)
            self[constraint.key] = constraint
        self.asked = frozenset(c.samples for c in self.values() if c.samples is not None)

    def restrict(self, logits: Tensor, layout: RowLayout) -> Tensor:
        """The (R, E) logits of the experts that rows have."""
        for constraint in self.values():
            logits = constraint.restrict(logits, layout)
        return logits

    def mask(self, logits: Tensor, groups: Tensor) -> Tensor:
        """The (R, E) logits that all of them allow."""
        for constraint in self.values():
            logits = constraint.mask(logits, groups)
        return logits

    def losses(self, routing: Routing, factor: float) -> dict[str, Tensor]:
        """The auxiliary losses by key; ``factor`` is the schedule's."""
        losses = {key: constraint.loss(routing) for key, constraint in self.items()}
        return {key: loss * factor if self[key].scheduled else loss for key, loss in losses.items() if loss is not None}

    def move(self, routing: Routing) -> None:
        """Moves their states by one step."""
        for constraint in self.values():
            constraint.update(routing)
