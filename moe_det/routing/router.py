"""The router: gate, noise, constraints and selection, and the balance of one training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, UncollectedConstraintError
from .calls import Call, CollectedBeforeBackward
from .constraint import Constraint
from .distributed import in_backward
from .gates import Gate
from .intervention import Intervention
from .noise import LearnedNoise
from .routing import Routing, Usage, select
from .rows import RowLayout
from .samples import TEACHER, RowSamples

HOOK_LINE = "custom_hooks = [dict(type='MoEHook')]"
MAX_PENDING_CALLS = 256  # far more than the levels of one step


class Router(nn.Module):
    """Decides which experts each routing row gets and with what weight.

    In training a router keeps the rows of its calls until :meth:`collect` computes the constraints over all of them:
    once per step, however often the layer was called. A forward that activation checkpointing repeats is not
    counted again.

    Args:
        gate: maps (R, C, H, W) to (R, E) logits.
        constraints: soft and hard constraints, applied in order.
        top_k: K, 1 <= K <= E.
        unit: ``'level'``, ``'image'`` or ``'patch'``; see :class:`~moe_det.routing.rows.RowLayout`.
        balance_over: ``'all'`` rows together (arXiv 2204.10598) or inside each ``'level'``.
        num_levels: levels that the layer sees in one step; balance inside levels keeps state for each.
        noise: learned noise while training; None takes it when there are constraints and all of them are soft.
        label: name of the layer in messages and logs.

    Raises:
        ValueError: two constraints of one kind.
    """

    def __init__(
        self,
        gate: Gate,
        constraints: Sequence[Constraint] = (),
        *,
        top_k: int,
        unit: str = 'level',
        balance_over: str = 'all',
        num_levels: int = 1,
        noise: bool | None = None,
        label: str = 'moe',
    ) -> None:
        super().__init__()
        self.gate = gate
        self.num_experts = gate.num_experts
        self.top_k = top_k
        self.unit = unit
        self.num_groups = num_levels if balance_over == 'level' and unit != 'image' else 1
        self.label = label
        # the trained K decides how weights are normalised, also when another K is tried at test time
        self.sums_to_one = top_k > 1
        self.constraints = nn.ModuleDict()
        self._set_constraints([*constraints, *gate.constraints()])
        self._supplied: dict[str, tuple[Tensor, bool]] = {}
        if noise is None:
            noise = bool(self.constraints) and all(c.learned_noise for c in self.constraints.values())
        self.noise = LearnedNoise(gate.in_channels, self.num_experts) if noise else None
        self.register_buffer('experts_and_k', torch.tensor([self.num_experts, top_k]))
        self.collected_by_owner = False  # a head adds the losses of its own routers itself
        self.monitored = False  # set by who reads `recent`
        self.recent: Usage | None = None
        self.step_follows = True  # set by who accumulates gradients: False in a forward that no optimizer step follows
        self.waiting: Usage | None = None  # of such forwards, for the next update of the constraints
        self.recorders: list[Callable[[Router, Routing, RowLayout], None]] = []  # told of every decision
        self.intervention: Intervention | None = None
        self._forget()

    def extra_repr(self) -> str:
        return (
            f'num_experts={self.num_experts}, top_k={self.top_k}, unit={self.unit!r}, balance_groups={self.num_groups}'
        )

    def _forget(self) -> None:
        self._calls: list[Call] = []
        self._replay: list[Call] = []
        self._call_count = 0

    def __getstate__(self) -> dict:
        """Copies and pickles without the rows of an unfinished step, which hold graphs."""
        state = self.__dict__.copy()
        state.update(_calls=[], _replay=[], _call_count=0, _supplied={}, recorders=[], intervention=None)
        state.update(recent=None, waiting=None, step_follows=True)
        return state

    # -- decision ----------------------------------------------------------------------------------------------

    def next_level(self) -> int:
        """Level number of the next call, for a layer that is called once per level."""
        return self._call_count

    @property
    def needs_keys(self) -> bool:
        """Whether the decision needs what the experts computed, and the experts therefore run first."""
        return self.gate.needs_keys

    def forward(self, rows: Sequence[Tensor], layout: RowLayout, keys: Sequence[Tensor] | None = None) -> Routing:
        """Routes the rows of one call.

        Args:
            rows: per level (R_l, C, h_l, w_l), as cut by :func:`~moe_det.routing.rows.rows_of`.
            layout: where the rows lie.
            keys: per level (R_l, E, D) pooled features of every expert, for a gate that needs them.

        Returns:
            The routing of all R rows, level by level.
        """
        logits = self.gate_logits(rows, layout, keys)
        if self.training and in_backward():
            return self._recompute(logits, rows, layout)
        if self.training:
            routing = self._decide_and_keep(logits, rows, layout, keys)
        else:
            routing = self._decide(logits, self._groups(layout, logits.device))[0]
        # stays 0 with one group: a compiled layer is traced anew for each value
        self._call_count = (self._call_count + 1) % self.num_groups
        for recorder in self.recorders:
            recorder(self, routing, layout)
        return routing

    def gate_logits(
        self,
        rows: Sequence[Tensor],
        layout: RowLayout,
        keys: Sequence[Tensor] | None = None,
        gate: Gate | None = None,
    ) -> Tensor:
        """(R, E) logits of a gate, the router's by default, without noise; for ``unit='image'`` the levels' mean."""
        gate = self.gate if gate is None else gate
        seen = [(x,) for x in rows] if keys is None else zip(rows, keys, strict=True)
        logits = [gate(*of_level) for of_level in seen]
        return torch.stack(logits).mean(0) if layout.unit == 'image' else torch.cat(logits)

    def _groups(self, layout: RowLayout, device: torch.device) -> Tensor:
        levels = layout.levels()
        if self.num_groups == 1:
            levels = torch.zeros_like(levels)
        return levels.to(device, non_blocking=True)

    def _decide(self, logits: Tensor, groups: Tensor, allowed: Tensor | None = None) -> tuple[Routing, Tensor]:
        if allowed is None:
            allowed = logits.detach()
            for constraint in self.constraints.values():
                allowed = constraint.mask(allowed, groups)
        choose = select if self.training or self.intervention is None else self.intervention.select
        indices, log_weights = choose(logits, allowed, self.top_k, self.sums_to_one)
        return Routing(logits, indices, log_weights, self.sums_to_one, groups, self.num_groups), allowed

    def _decide_and_keep(
        self, logits: Tensor, rows: Sequence[Tensor], layout: RowLayout, keys: Sequence[Tensor] | None
    ) -> Routing:
        keeps = len(self.constraints) > 0 or self.monitored
        if keeps and not self._calls:
            self._replay = []
        elif len(self._calls) >= MAX_PENDING_CALLS:
            if self.constraints:
                raise self.uncollected()
            self._forget()
        noise = None
        if self.noise is not None:
            noise = self.noise.draw(layout, logits)
            logits = logits + noise * self.noise.deviation(rows, layout)
        groups = self._groups(layout, logits.device)
        leaf = None
        if not torch.is_grad_enabled():
            # the auxiliary loss is computed from a leaf, whose gradient the recomputed forward passes on
            leaf = logits.detach().requires_grad_()
        with torch.set_grad_enabled(leaf is not None or torch.is_grad_enabled()):
            routing, allowed = self._decide(logits if leaf is None else leaf, groups)
        if not keeps and noise is None:
            return routing
        routing.samples = RowSamples.take(self.asked, rows, layout)
        if TEACHER in self.asked:
            with torch.no_grad():
                routing.samples.teacher = self.gate_logits(rows, layout, keys, self.gate.teacher)
        call = Call(routing if keeps else None, groups, tuple(x.shape for x in rows), allowed, noise, leaf)
        self._replay.append(call)
        if not keeps:  # a recomputed forward needs the noise; nobody collects, so the oldest are dropped
            del self._replay[:-MAX_PENDING_CALLS]
            return routing
        self._calls.append(call)
        if self.constraints and leaf is None and routing.log_weights.requires_grad:
            routing.log_weights.register_hook(CollectedBeforeBackward(self, call))
        return routing

    def _recompute(self, logits: Tensor, rows: Sequence[Tensor], layout: RowLayout) -> Routing:
        """Repeats a checkpointed forward inside backward: same noise, same choice, not counted again."""
        shapes = tuple(x.shape for x in rows)
        matching = [i for i, call in enumerate(self._replay) if call.shapes == shapes]
        if not matching:
            if self.constraints or self.noise is not None:
                raise RuntimeError(
                    f'{self.label}: backward repeats a checkpointed forward of an earlier step, whose noise and '
                    'constraints are gone. Run backward once per step, before the next forward'
                )
            return self._decide(logits, self._groups(layout, logits.device))[0]
        call = self._replay.pop(matching[-1])  # backward runs from the last call to the first
        if self.constraints and not call.collected:
            raise self.uncollected()
        if call.noise is not None:
            logits = logits + call.noise * self.noise.deviation(rows, layout)
        if call.leaf is not None and call.leaf.grad is not None and logits.requires_grad:
            passed_on = call.leaf.grad
            logits.register_hook(lambda gradient: gradient + passed_on)
        return self._decide(logits, call.groups, call.allowed)[0]

    # -- one step, one balance ---------------------------------------------------------------------------------

    def start_step(self) -> None:
        """Drops the rows of forwards that belong to no step, such as a forward that was never trained on."""
        self._forget()

    def collect(self) -> dict[str, Tensor]:
        """Computes the constraints' losses over all rows since the last call, and moves their state.

        In a distributed run every process must call it in every step, also when it had no rows. Where several forwards
        share an optimizer step (gradient accumulation), the state moves once, in the last one, by the usage of all of
        them; ``step_follows`` tells.

        Returns:
            The auxiliary losses by constraint key, each a scalar with gradient.
        """
        calls, self._calls = self._calls, []
        supplied, self._supplied = self._supplied, {}
        self._call_count = 0
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
                    losses[key] = loss
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
        weight = next(self.gate.parameters())
        return Routing.without_rows(weight, self.num_experts, self.top_k, self.sums_to_one, self.num_groups)

    def take_gate(self, gate: Gate) -> None:
        """Replaces the gate, and the constraints that it brought."""
        for constraint in self.gate.constraints():
            del self.constraints[constraint.key]
        self.gate = gate
        self._set_constraints(gate.constraints())

    def _set_constraints(self, constraints: Sequence[Constraint]) -> None:
        for constraint in constraints:
            if constraint.key in self.constraints:
                raise ValueError(f'two constraints of the kind {constraint.key!r}; give each kind once')
            constraint.prepare(self.num_experts, self.num_groups)
            self.constraints[constraint.key] = constraint
        # a set of names: what no constraint asks for is neither computed nor kept
        self.asked = frozenset(c.samples for c in self.constraints.values() if c.samples is not None)

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
        kinds = ', '.join(type(c).__name__ for c in self.constraints.values())
        return UncollectedConstraintError(
            f'{self.label}: {kinds} was not applied, because nobody collected it in this step. Add this line to the '
            f'config (or the hook to its list of custom_hooks): {HOOK_LINE}'
        )

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        stored = state_dict.get(f'{prefix}experts_and_k')
        if stored is not None and self.gate.freezes_experts and stored[0] == self.num_experts:
            # a gate that is fitted anew may choose another K than the one that it learns from
            stored = state_dict[f'{prefix}experts_and_k'] = self.experts_and_k.clone()
        if stored is not None and tuple(stored.tolist()) != tuple(self.experts_and_k.tolist()):
            experts, top_k = stored.tolist()
            raise CheckpointError(
                f'the checkpoint has num_experts={experts}, top_k={top_k} at {prefix.rstrip(".")}, the config '
                f'num_experts={self.num_experts}, top_k={int(self.experts_and_k[1])}: change the config to match'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def find_routers(model: nn.Module) -> dict[str, Router]:
    """The routers of a model by the path of the layer they decide for (``bbox_head.cls``, ``backbone.layer4``)."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Router):
            found[path.removesuffix('.router').replace('.routers.', '.')] = module
    return found
