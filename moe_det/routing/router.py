"""The router: gate, noise, constraints and selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .calls import Call, CollectedBeforeBackward
from .constraint import Constraint
from .distributed import in_backward
from .gates import Gate
from .noise import LearnedNoise
from .routing import Routing
from .rows import RowLayout
from .samples import TEACHER, RowSamples
from .selection import SOFTMAX, STRAIGHT_THROUGH, check_weighting, select
from .step_balance import StepBalance
from .stored_router import check_stored_router

if TYPE_CHECKING:
    from .intervention import Intervention

MAX_PENDING_CALLS = 256  # far more than the levels of one step


class Router(StepBalance):
    """Decides which experts each routing row gets and with what weight.

    In training it keeps the rows of its calls until :meth:`collect`, see
    :class:`~moe_det.routing.step_balance.StepBalance`. A forward that activation checkpointing repeats is not counted
    again.

    Args:
        gate: maps (R, C, H, W) to (R, E) logits.
        constraints: soft and hard constraints, applied in order.
        top_k: K, 1 <= K <= E.
        unit: ``'level'``, ``'image'`` or ``'patch'``; see :class:`~moe_det.routing.rows.RowLayout`.
        balance_over: ``'all'`` rows together (arXiv 2204.10598) or inside each ``'level'``.
        num_levels: levels that the layer sees in one step; balance inside levels keeps state for each.
        noise: learned noise while training; None takes it when there are constraints and all of them are soft.
        label: name of the layer in messages and logs.
        slots: groups of E / slots experts of which every row runs one each; K is then their number, and weights are
            straight through. See :mod:`moe_det.routing.selection`.
        weighting: ``'softmax'`` or, for K = 1, ``'straight_through'``.

    Attributes:
        noise_scale: factor of the noise. This and the next three act in training alone; a schedule sets them.
        temperature: choice and weights come from the logits over this.
        balance_scale: factor of the soft constraints' losses.
        training_top_k: another K; None for the own. Without slots alone.

    Raises:
        ValueError: two constraints of one kind, an unknown weighting, or slots or a weighting that K does not fit.
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
        slots: int = 1,
        weighting: str = SOFTMAX,
    ) -> None:
        super().__init__()
        check_weighting(gate.num_experts, top_k, slots, weighting)
        self.gate = gate
        self.num_experts = gate.num_experts
        self.top_k = top_k
        self.unit = unit
        self.num_groups = num_levels if balance_over == 'level' and unit != 'image' else 1
        self.label = label
        self.slots = slots
        self.weighting = weighting if slots == 1 else STRAIGHT_THROUGH
        self.noise_scale = self.temperature = 1.0
        self.training_top_k: int | None = None
        # the trained K decides how weights are normalised, even when another K is tried at test time
        self.sums_to_one = top_k > 1 or self.weighting == STRAIGHT_THROUGH
        self._set_constraints([*constraints, *gate.constraints()])
        if noise is None:
            noise = bool(self.constraints) and all(c.learned_noise for c in self.constraints.values())
        self.noise = LearnedNoise(gate.in_channels, self.num_experts) if noise else None
        self.register_buffer('experts_and_k', torch.tensor([self.num_experts, top_k]))
        if self.weighting == STRAIGHT_THROUGH:
            self.register_buffer(STRAIGHT_THROUGH, torch.ones(1, dtype=torch.long))
        self.recorders: list[Callable[[Router, Routing, RowLayout], None]] = []  # told of every decision
        self.intervention: Intervention | None = None

    def extra_repr(self) -> str:
        slots = f'slots={self.slots}, ' if self.slots > 1 else ''
        return (
            f'num_experts={self.num_experts}, top_k={self.top_k}, {slots}weighting={self.weighting!r}, '
            f'unit={self.unit!r}, balance_groups={self.num_groups}'
        )

    @property
    def copies(self) -> int:
        """Experts of each slot."""
        return self.num_experts // self.slots

    def __getstate__(self) -> dict:
        """Copies and pickles without recorders and intervention."""
        return {**super().__getstate__(), 'recorders': [], 'intervention': None}

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
        # stays 0 with one group: a compiled layer is retraced for each value
        self._call_count = (self._call_count + len(layout.patches)) % self.num_groups
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
        if self.num_groups == 1:
            return torch.zeros(sum(layout.level_rows), dtype=torch.long, device=device)
        return layout.levels().to(device, non_blocking=True)

    def _decide(self, logits: Tensor, groups: Tensor, allowed: Tensor | None = None) -> tuple[Routing, Tensor]:
        if allowed is None:
            allowed = logits.detach()
            for constraint in self.constraints.values():
                allowed = constraint.mask(allowed, groups)
        top_k = self.top_k
        if self.training and self.training_top_k is not None:
            if self.slots > 1:
                raise ValueError(f'{self.label}: training_top_k={self.training_top_k}: a row runs one expert per slot')
            top_k = self.training_top_k
        choose = select if self.training or self.intervention is None else self.intervention.select
        straight_through = self.weighting == STRAIGHT_THROUGH and top_k in (1, self.slots)
        indices, log_weights = choose(logits, allowed, top_k, self.sums_to_one, self.slots, straight_through)
        routing = Routing(logits, indices, log_weights, self.sums_to_one, groups, self.num_groups, slots=self.slots)
        return routing, allowed

    def _in_training(self, logits: Tensor, noise: Tensor | None, rows: Sequence[Tensor], layout: RowLayout) -> Tensor:
        """The logits that decide in training."""
        if noise is not None:
            noise = noise * self.noise.deviation(rows, layout)
            logits = logits + (noise if self.noise_scale == 1 else noise * self.noise_scale)
        return logits if self.temperature == 1 else logits / self.temperature

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
        noise = None if self.noise is None else self.noise.draw(layout, logits)
        logits = self._in_training(logits, noise, rows, layout)
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
            logits = self._in_training(logits, None, rows, layout)
            return self._decide(logits, self._groups(layout, logits.device))[0]
        call = self._replay.pop(matching[-1])  # backward runs from the last call to the first
        if self.constraints and not call.collected:
            raise self.uncollected()
        logits = self._in_training(logits, call.noise, rows, layout)
        if call.leaf is not None and call.leaf.grad is not None and logits.requires_grad:
            passed_on = call.leaf.grad
            logits.register_hook(lambda gradient: gradient + passed_on)
        return self._decide(logits, call.groups, call.allowed)[0]

    def _no_rows(self) -> Routing:
        weight = next(self.gate.parameters())
        return Routing.without_rows(weight, self.num_experts, self.top_k, self.sums_to_one, self.num_groups, self.slots)

    def take_gate(self, gate: Gate) -> None:
        """Replaces the gate, and the constraints that it brought."""
        for constraint in self.gate.constraints():
            del self.constraints[constraint.key]
        self.gate = gate
        self._set_constraints(gate.constraints())

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        check_stored_router(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def find_routers(model: nn.Module) -> dict[str, Router]:
    """The routers of a model by the path of the layer they decide for (``bbox_head.cls``, ``backbone.layer4``)."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Router):
            found[path.removesuffix('.router').replace('.routers.', '.')] = module
    return found
