"""The router: gate, noise, constraints and selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .annealing import Annealing
from .constraint import Constraint, Constraints
from .distributed import in_backward
from .expert_choice import ExpertChoice
from .gates import Gate
from .noise import LearnedNoise
from .observers import Observers
from .routing import Routing
from .rows import RowLayout
from .samples import TEACHER, RowSamples
from .selection import ENTMAX, FULL_SOFTMAX, SOFTMAX, STRAIGHT_THROUGH, Choose, check_weighting, select, select_entmax
from .step import Call, Step, joined, uncollected
from .stored_router import check_stored_router

if TYPE_CHECKING:
    from .intervention import Intervention


class Router(nn.Module):
    """Decides which experts each routing row gets and with what weight.

    In training it keeps the rows of its calls until :meth:`collect` computes the constraints, once per step however
    many calls it had. A forward that activation checkpointing repeats is not counted again.

    Others attach from outside: who watches to ``decided`` and ``collected``, a schedule to ``annealing``,
    :func:`~moe_det.routing.intervention.intervene` to ``intervention``. Copies and pickles go without those who watch
    or intervene, and without the rows of an unfinished step; they keep ``in_evaluation``, which belongs to the model.

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
        weighting: ``'softmax'``, ``'full_softmax'``, ``'entmax'`` or, for K = 1, ``'straight_through'``.
        rows_per_expert: experts choose rows instead, so many each; see :mod:`moe_det.routing.expert_choice`. K is then
            the largest number of experts that a row runs.

    Attributes:
        constraints: by their keys.
        step: the rows and usage of the training step.
        decided: tells of every decision, but for those that checkpointing repeats: the routing and its
            :class:`~moe_det.routing.rows.RowLayout`.
        collected: tells of every training step that is collected: its usage (1, E) in all processes.
        annealing: of a schedule, in training alone.
        intervention: another choice than the gate's, in evaluation alone.
        in_evaluation: the model's own choice in evaluation, where nobody intervenes; None: as in training.

    Raises:
        ValueError: two constraints of one kind, an unknown weighting, or slots or a weighting that K does not fit.
    """

    experts_and_k: Tensor

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
        rows_per_expert: int | None = None,
    ) -> None:
        super().__init__()
        check_weighting(gate.num_experts, top_k, slots, weighting, rows_per_expert)
        self.gate = gate
        self.num_experts = gate.num_experts
        self.top_k = top_k
        self.unit = unit
        self.num_groups = num_levels if balance_over == 'level' and unit != 'image' else 1
        self.label = label
        self.slots = slots
        self.weighting = weighting if slots == 1 else STRAIGHT_THROUGH
        self.rows_per_expert = rows_per_expert
        if self.weighting == SOFTMAX and (top_k == 1 or rows_per_expert is not None):
            self.sums_to_one = False
        else:  # the trained K decides how weights are normalised, also when another K is tried at test time
            self.sums_to_one = self.weighting != FULL_SOFTMAX
        self.constraints = Constraints(self.num_experts, self.num_groups, slots, top_k)
        self.constraints.add([*constraints, *gate.constraints()])
        if noise is None:
            noise = bool(self.constraints) and all(c.learned_noise for c in self.constraints.values())
        self.noise = LearnedNoise(gate.in_channels, self.num_experts) if noise else None
        self.register_buffer('experts_and_k', torch.tensor([self.num_experts, top_k]))
        if self.weighting != SOFTMAX:  # told by the checkpoint
            self.register_buffer(self.weighting, torch.ones(1, dtype=torch.long))
        self.step = Step()
        self.decided = Observers()
        self.collected = Observers()
        self.annealing = Annealing()
        self.intervention: Intervention | None = None
        self.in_evaluation: Intervention | None = None

    def extra_repr(self) -> str:
        slots = f'slots={self.slots}, ' if self.slots > 1 else ''
        return (
            f'num_experts={self.num_experts}, top_k={self.top_k}, {slots}weighting={self.weighting!r}, '
            f'unit={self.unit!r}, balance_groups={self.num_groups}'
            + (f', rows_per_expert={self.rows_per_expert}' if self.rows_per_expert is not None else '')
        )

    @property
    def copies(self) -> int:
        """Experts of each slot."""
        return self.num_experts // self.slots

    @property
    def test_top_k(self) -> int:
        """Experts that a row runs in evaluation, where nobody intervenes."""
        return self.top_k if self.in_evaluation is None else self.in_evaluation.chosen(self.top_k)

    @property
    def needs_keys(self) -> bool:
        """Whether the decision needs what the experts computed, and the experts therefore run first."""
        return self.gate.needs_keys

    def next_level(self) -> int:
        """Level number of the next call, for a layer that is called once per level."""
        return self.step.level

    # -- decision ----------------------------------------------------------------------------------------------

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
            routing = self._decide(logits, self._groups(layout, logits.device), layout)[0]
        # stays 0 with one group: a compiled layer is retraced for each value
        self.step.level = (self.step.level + len(layout.patches)) % self.num_groups
        if self.decided:
            with torch.no_grad():  # of a copy: what it caches without gradient must not reach the auxiliary loss
                self.decided.tell(replace(routing), layout)
        return routing

    def gate_logits(
        self,
        rows: Sequence[Tensor],
        layout: RowLayout,
        keys: Sequence[Tensor] | None = None,
        gate: Gate | None = None,
    ) -> Tensor:
        """(R, E) logits of a gate, the router's by default, without noise; for ``unit='image'`` the levels' mean.

        Experts that a constraint takes from a row have ``FORBIDDEN``.
        """
        gate = self.gate if gate is None else gate
        seen = [(x,) for x in rows] if keys is None else zip(rows, keys, strict=True)
        logits = [gate(*of_level) for of_level in seen]
        joined = torch.stack(logits).mean(0) if layout.unit == 'image' else torch.cat(logits)
        return self.constraints.restrict(joined, layout)

    def _groups(self, layout: RowLayout, device: torch.device) -> Tensor:
        if self.num_groups == 1:
            return torch.zeros(sum(layout.level_rows), dtype=torch.long, device=device)
        return layout.levels().to(device, non_blocking=True)

    def _annealed(self, logits: Tensor, noise: Tensor | None, rows: Sequence[Tensor], layout: RowLayout) -> Tensor:
        """The logits that decide in training."""
        factor, temperature = self.annealing.noise, self.annealing.temperature
        if noise is not None and self.noise is not None:
            noise = noise * self.noise.deviation(rows, layout)
            logits = logits + (noise if factor == 1 else noise * factor)
        return logits if temperature == 1 else logits / temperature

    def _decide(
        self, logits: Tensor, groups: Tensor, layout: RowLayout, allowed: Tensor | None = None
    ) -> tuple[Routing, Tensor]:
        """The routing by these logits, and the logits that the constraints allow (as they stand, unless given)."""
        if allowed is None:
            allowed = self.constraints.mask(logits.detach(), groups)
        top_k, choose = self.top_k if self.training else self.test_top_k, self._chooses(layout)
        if self.training and self.annealing.top_k is not None:
            top_k = self.annealing.top_k
            if self.slots > 1:
                raise ValueError(f'{self.label}: top_k={top_k} in training: a row runs one expert per slot')
        elif not self.training and (changed := self.intervention or self.in_evaluation) is not None:
            choose = changed.changing(choose)
        straight_through = self.weighting == STRAIGHT_THROUGH and top_k in (1, self.slots)
        indices, log_weights = choose(logits, allowed, top_k, self.sums_to_one, self.slots, straight_through)
        routing = Routing(logits, indices, log_weights, self.sums_to_one, groups, self.num_groups, slots=self.slots)
        return routing, allowed

    def _chooses(self, layout: RowLayout) -> Choose:
        """What turns logits into chosen experts and their weights."""
        if self.rows_per_expert is not None:
            return ExpertChoice(self.rows_per_expert, layout)
        return select_entmax if self.weighting == ENTMAX else select

    def _decide_and_keep(
        self, logits: Tensor, rows: Sequence[Tensor], layout: RowLayout, keys: Sequence[Tensor] | None
    ) -> Routing:
        noise = None if self.noise is None else self.noise.draw(layout, logits)
        logits = self._annealed(logits, noise, rows, layout)
        groups = self._groups(layout, logits.device)
        leaf = None
        if not torch.is_grad_enabled():
            # the auxiliary loss is computed from a leaf, whose gradient the recomputed forward passes on
            leaf = logits.detach().requires_grad_()
        with torch.set_grad_enabled(leaf is not None or torch.is_grad_enabled()):
            routing, allowed = self._decide(logits if leaf is None else leaf, groups, layout)
        if not self._collects and noise is None:
            return routing
        routing.samples = RowSamples.take(self.constraints.asked, rows, layout)
        if routing.samples is not None and TEACHER in self.constraints.asked:
            distilled: Any = self.gate
            with torch.no_grad():
                routing.samples.teacher = self.gate_logits(rows, layout, keys, distilled.teacher)
        shapes = tuple(x.shape for x in rows)
        refusal = uncollected(self.label, self.constraints.values())
        self.step.keep(Call(routing if self._collects else None, groups, shapes, allowed, noise, leaf, refusal))
        return routing

    def _recompute(self, logits: Tensor, rows: Sequence[Tensor], layout: RowLayout) -> Routing:
        """Repeats a checkpointed forward inside backward: same noise, same choice, not counted again."""
        call = self.step.recall(tuple(x.shape for x in rows))
        if call is None:
            if self.constraints or self.noise is not None:
                raise RuntimeError(
                    f'{self.label}: backward repeats a checkpointed forward of an earlier step, whose noise and '
                    'constraints are gone. Run backward once per step, before the next forward'
                )
            logits = self._annealed(logits, None, rows, layout)
            return self._decide(logits, self._groups(layout, logits.device), layout)[0]
        logits = self._annealed(logits, call.noise, rows, layout)
        if call.leaf is not None and call.leaf.grad is not None and logits.requires_grad:
            passed_on = call.leaf.grad
            logits.register_hook(lambda gradient: gradient + passed_on)
        return self._decide(logits, call.groups, layout, call.allowed)[0]

    # -- steps -------------------------------------------------------------------------------------------------

    @property
    def _collects(self) -> bool:
        """Whether anyone wants the rows of a step."""
        return len(self.constraints) + len(self.collected) > 0

    def start_step(self, optimizer_follows: bool | None = None) -> None:
        """Drops the rows of forwards that belong to no step, such as a forward that was never trained on.

        Args:
            optimizer_follows: False where no step of the optimizer follows this forward, as in all but the last of
                those whose gradients are accumulated; None: as was said last.
        """
        self.step.forget()
        if optimizer_follows is not None:
            self.step.optimizer_follows = optimizer_follows

    def supply(self, kind: str, values: Tensor, per_row: bool = False) -> None:
        """Gives the step's images or rows what constraints compare them by; dropped when none asks for it.

        Args:
            kind: what the constraint asks for, such as ``'inputs'``.
            values: (N, ...) per image of the batch, or (R, ...). In a distributed run (...) is the same everywhere.
            per_row: whether they belong to the step's rows, in the order of the calls and of
                :class:`~moe_det.routing.rows.RowLayout`.
        """
        if kind in self.constraints.asked:
            self.step.supplied[kind] = (values, per_row)

    def collect(self) -> dict[str, Tensor]:
        """Computes the constraints' losses over all rows since the last call, and moves their state.

        In a distributed run every process must call it in every step, also when it had no rows. Where several forwards
        share an optimizer step (gradient accumulation), the state moves once, in the last one, by the usage of all of
        them; :meth:`start_step` is told.

        Returns:
            The auxiliary losses by constraint key, each a scalar with gradient.

        Raises:
            MoEConfigError: balance inside levels, and the step brought other levels than the layer was built for.
        """
        calls, supplied = self.step.close(self.label, self.num_groups)
        if not self.training or not self._collects:
            return {}
        with torch.autocast(self.experts_and_k.device.type, enabled=False):
            routing = joined(calls, supplied) if calls else self._no_rows()
            usage = routing.usage  # cached with its gradient, which the updates below do not keep
            losses = self.constraints.losses(routing, self.annealing.balance)
            if self.constraints and (whole := self.step.since_update(routing)) is not None:
                self.constraints.move(whole)
            if self.collected:
                self.collected.tell(usage.detached())
        return losses

    def _no_rows(self) -> Routing:
        weight = next(self.gate.parameters())
        return Routing.without_rows(weight, self.num_experts, self.top_k, self.sums_to_one, self.num_groups, self.slots)

    # -- building, moving, loading -----------------------------------------------------------------------------

    def take_gate(self, gate: Gate) -> None:
        """Replaces the gate, and the constraints that it brought."""
        for constraint in self.gate.constraints():
            del self.constraints[constraint.key]
        self.gate = gate
        self.constraints.add(gate.constraints())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, 'intervention': None}

    def _apply(self, *args: Any, **kwargs: Any) -> Router:
        """Moves or converts the module, as ``cuda()`` and ``to()`` do; rows of an unfinished step stay behind."""
        nn.Module._apply(self, *args, **kwargs)
        self.step.move(self.experts_and_k.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        check_stored_router(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def find_routers(model: nn.Module) -> dict[str, Router]:
    """The routers of a model by the path of the layer they decide for (``bbox_head.cls``, ``backbone.layer4``)."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Router):
            found[path.removesuffix('.router').replace('.routers.', '.')] = module
    return found
