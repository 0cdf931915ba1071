"""The balance of one training step: a router keeps its calls until constraints are computed over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import MoEConfigError, UncollectedConstraintError
from .calls import Call, uncollected
from .constraint import Constraint
from .routing import Routing, Usage


class StepBalance(nn.Module):
    """Base of the router: constraints, and the rows of the calls of a step, once per step however many calls it had.

    Attributes:
        constraints: by their keys.
        balance_scale: factor of the soft constraints' losses; a schedule sets it.
        collected_by_owner: whether a head adds the losses of its own routers itself.
        monitored: whether usage is summed in ``recent``, for MoEHook to read.
        recent: usage since it was last read.
        step_follows: False in a forward that no optimizer step follows; MoEHook sets it under gradient accumulation.
        waiting: usage of such forwards, for the next update of the constraints.
    """

    num_experts: int
    num_groups: int
    slots: int
    label: str

    def __init__(self) -> None:
        super().__init__()
        self.balance_scale = 1.0
        self.collected_by_owner = False
        self.monitored = False
        self.recent: Usage | None = None
        self.step_follows = True
        self.waiting: Usage | None = None
        self._supplied: dict[str, tuple[Tensor, bool]] = {}
        self._forget()

    def _set_constraints(self, constraints: Sequence[Constraint]) -> None:
        """Adds constraints, and prepares them for this router."""
        if not hasattr(self, 'constraints'):
            self.constraints = nn.ModuleDict()
        for constraint in constraints:
            if constraint.key in self.constraints:
                raise ValueError(f'two constraints of the kind {constraint.key!r}; give each kind once')
            constraint.slots = self.slots
            constraint.prepare(self.num_experts, self.num_groups)
            self.constraints[constraint.key] = constraint
        # a set of names: what no constraint asks for is neither computed nor kept
        self.asked = frozenset(c.samples for c in self.constraints.values() if c.samples is not None)

    def _forget(self) -> None:
        self._calls: list[Call] = []
        self._replay: list[Call] = []
        self._call_count = 0

    def __getstate__(self) -> dict:
        """Copies and pickles without the rows of an unfinished step, which hold graphs."""
        state = self.__dict__.copy()
        state.update(_calls=[], _replay=[], _call_count=0, _supplied={}, recent=None, waiting=None)
        state['step_follows'] = True
        return state

    def _apply(self, *args, **kwargs) -> StepBalance:
        """Moves or converts the module, as ``cuda()`` and ``to()`` do; rows of an unfinished step stay behind."""
        super()._apply(*args, **kwargs)
        self._forget()
        self._supplied = {}
        device = self.experts_and_k.device
        for name in ('recent', 'waiting'):
            if (usage := getattr(self, name)) is not None:
                setattr(self, name, usage.to(device))
        return self

    def start_step(self) -> None:
        """Drops the rows of forwards that belong to no step, such as a forward that was never trained on."""
        self._forget()

    def collect(self) -> dict[str, Tensor]:
        """Computes the constraints' losses over all rows since the last call, and moves their state.

        In a distributed run every process must call it in every step, even when it had no rows. Where several forwards
        share an optimizer step (gradient accumulation), the state moves once, in the last one, by the usage of all of
        them; ``step_follows`` tells.

        Returns:
            The auxiliary losses by constraint key, each a scalar with gradient.

        Raises:
            MoEConfigError: balance inside levels, and the step brought other levels than the layer was built for.
        """
        calls, self._calls = self._calls, []
        supplied, self._supplied = self._supplied, {}
        left, self._call_count = self._call_count, 0
        if left and calls:
            brought = sum(int(call.routing.groups.unique().numel()) for call in calls)
            raise MoEConfigError(
                f'{self.label}: num_levels={self.num_groups}, but a step brings {brought} levels. With '
                "balance_over='level' each level has a state of its own, so the numbers must agree"
            )
        if not self.training or not (self.constraints or self.monitored):
            return {}
        for call in calls:
            call.collected = True
        device = self.experts_and_k.device
        with torch.autocast(device.type, enabled=False):
            routing = Routing.concatenate([call.routing for call in calls] or [self._no_rows()])
            if routing.samples is not None:
                routing.samples.supplied = supplied
            usage = routing.usage  # cached with its gradient, which the updates below do not keep
            losses = {}
            for key, constraint in self.constraints.items():
                loss = constraint.loss(routing)
                if loss is not None:
                    losses[key] = loss * self.balance_scale if constraint.scheduled else loss
            self._update(routing)
            if self.monitored:
                usage = usage.detached()
                self.recent = usage if self.recent is None else self.recent + usage
        return losses

    def _update(self, routing: Routing) -> None:
        """Moves the constraints' state, or keeps the usage for the forward that ends the optimizer step."""
        if not self.constraints or (self.step_follows and self.waiting is None):
            whole = routing
        else:
            usage = routing.usage.without_gradient()
            self.waiting = usage if self.waiting is None else self.waiting + usage
            if not self.step_follows:
                return
            whole = routing.with_usage(self.waiting)
        self.waiting = None
        for constraint in self.constraints.values():
            constraint.update(whole)

    def _no_rows(self) -> Routing:
        """The routing of a step without calls."""
        raise NotImplementedError(f'{type(self).__name__} does not define _no_rows()')

    def supply(self, kind: str, values: Tensor, per_row: bool = False) -> None:
        """Gives the step's images or rows what constraints compare them by; dropped when none asks for it.

        Args:
            kind: what the constraint asks for, such as ``'inputs'``.
            values: (N, ...) per image of the batch, or (R, ...). In a distributed run (...) is the same everywhere.
            per_row: whether they belong to the step's rows, in the order of the calls and of
                :class:`~moe_det.routing.rows.RowLayout`.
        """
        if kind in self.asked:
            self._supplied[kind] = (values, per_row)

    def uncollected(self) -> UncollectedConstraintError:
        """The error for a step whose constraints were left out."""
        return uncollected(self.label, self.constraints.values())
