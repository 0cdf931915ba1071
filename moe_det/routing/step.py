"""The state of a training step: a router keeps its calls until their constraints are computed over all of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MoEConfigError, UncollectedConstraintError
from .constraint import Constraint
from .routing import Routing, Usage

MAX_PENDING_CALLS = 256  # far more than the levels of one step
HOOK_LINE = "custom_hooks = [dict(type='MoEHook')]"


def uncollected(label: str, constraints: Iterable[Constraint]) -> UncollectedConstraintError | None:
    """The error for a step whose constraints were left out; None where there are none."""
    kinds = ', '.join(type(c).__name__ for c in constraints)
    if not kinds:
        return None
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
        refusal: the error for a backward pass without the constraints' losses; None without constraints.
        collected: whether the step's constraints have been computed.
    """

    routing: Routing | None
    groups: Tensor
    shapes: tuple[torch.Size, ...]
    allowed: Tensor
    noise: Tensor | None
    leaf: Tensor | None
    refusal: UncollectedConstraintError | None
    collected: bool = False

    def must_be_collected(self) -> None:
        """Refuses a backward pass of this call before it has been collected."""
        if self.refusal is not None and not self.collected:
            raise self.refusal

    def watch_backward(self) -> None:
        """Lets the backward pass through the weights check that."""
        if self.routing is None or self.refusal is None or self.leaf is not None:
            return
        if not self.routing.log_weights.requires_grad:
            return
        itself = weakref.ref(self)  # the graph that the call holds must not hold the call

        def check(gradient: Tensor) -> None:
            call = itself()
            if call is not None:
                call.must_be_collected()

        self.routing.log_weights.register_hook(check)


class Step:
    """What a router keeps between the forwards of a training step, and between those of a step of the optimizer.

    Copies and pickles of a router start with none: rows of an unfinished step hold graphs.

    Attributes:
        calls: not collected yet.
        level: number of the next level, modulo the balance groups.
        collections: how often the router was collected.
        optimizer_follows: False in forwards that no step of the optimizer follows (gradient accumulation).
        waiting: usage in such forwards, for the constraints' next update.
        supplied: what constraints compare rows by, see :meth:`~moe_det.routing.router.Router.supply`.
    """

    def __init__(self) -> None:
        self.collections = 0
        self.optimizer_follows = True
        self.waiting: Usage | None = None
        self.supplied: dict[str, tuple[Tensor, bool]] = {}
        self.forget()

    def __reduce__(self) -> tuple:
        return Step, ()

    def forget(self) -> None:
        """Drops the calls."""
        self.calls: list[Call] = []
        self._replay: list[Call] = []
        self.level = 0

    def move(self, device: torch.device) -> None:
        """Takes waiting usage to a device; rows stay behind."""
        self.forget()
        self.supplied = {}
        if self.waiting is not None:
            self.waiting = self.waiting.to(device)

    def keep(self, call: Call) -> None:
        """Keeps a call until it is collected; one without routing for the repeated forward alone.

        Raises:
            UncollectedConstraintError: hundreds of calls with constraints, and nobody collects them.
        """
        if call.routing is None:  # nobody collects, so the oldest are dropped
            self._replay = [*self._replay[1 - MAX_PENDING_CALLS :], call]
            return
        if len(self.calls) >= MAX_PENDING_CALLS:
            self.calls[0].must_be_collected()
            self.forget()
        if not self.calls:
            self._replay = []
        self.calls.append(call)
        self._replay.append(call)
        call.watch_backward()

    def recall(self, shapes: tuple[torch.Size, ...]) -> Call | None:
        """The call that backward repeats, which it does from the last to the first; None if it is of an earlier step.

        Raises:
            UncollectedConstraintError: its constraints were left out.
        """
        matching = [i for i, call in enumerate(self._replay) if call.shapes == shapes]
        if not matching:
            return None
        call = self._replay.pop(matching[-1])
        call.must_be_collected()
        return call

    def close(self, label: str, num_groups: int) -> tuple[list[Call], dict[str, tuple[Tensor, bool]]]:
        """Ends the step: its calls, and what was supplied.

        Raises:
            MoEConfigError: balance inside levels, and the step brought other levels than the layer was built for.
        """
        calls, supplied, left = self.calls, self.supplied, self.level
        self.calls, self.supplied, self.level = [], {}, 0
        self.collections += 1
        if left and calls:
            brought = sum(int(call.groups.unique().numel()) for call in calls)
            raise MoEConfigError(
                f'{label}: num_levels={num_groups}, but a step brings {brought}. With '
                "balance_over='level' each level has a state of its own, so the numbers must agree"
            )
        return calls, supplied

    def since_update(self, routing: Routing) -> Routing | None:
        """The collected rows with the usage of all forwards since the constraints' last update.

        None in a forward that no step of the optimizer follows: then its usage waits.
        """
        if self.optimizer_follows and self.waiting is None:
            return routing
        usage = routing.usage.without_gradient()
        self.waiting = usage if self.waiting is None else self.waiting + usage
        if not self.optimizer_follows:
            return None
        routing, self.waiting = routing.with_usage(self.waiting), None
        return routing


def joined(calls: Sequence[Call], supplied: dict[str, tuple[Tensor, bool]]) -> Routing:
    """All rows of a step, which is collected by that."""
    for call in calls:
        call.collected = True
    routing = Routing.concatenate([call.routing for call in calls if call.routing is not None])
    if routing.samples is not None:
        routing.samples.supplied = supplied
    return routing
