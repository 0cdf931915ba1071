"""Fits a plain gate to an attentive one, so that inference runs K experts again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import checked_number
from ..errors import CheckpointError
from .attention import AttentiveGate
from .constraint import Constraint
from .distributed import sum_over_ranks
from .experts import ExpertGroup
from .gates import GAPLinearGate, Gate
from .router import Router
from .routing import Routing
from .samples import TEACHER
from .selection import log_probabilities
from .soft_constraints import SoftConstraint


class DistillationConstraint(SoftConstraint):
    """Mean over rows of KL(p_att || p): how far the gate's probabilities p are from the attentive gate's.

    Added by :class:`DistilledGate`; not a constraint for configs.

    Args:
        weight: factor of the loss, >= 0.
    """

    key = 'distillation'
    learned_noise = False
    scheduled = False
    samples = TEACHER

    def group_values(self, routing: Routing) -> Tensor:
        log_p = routing.log_probs
        if routing.samples is None:
            teacher = log_p.detach()
        else:
            assert routing.samples.teacher is not None  # the router keeps what a constraint asks for
            teacher = log_probabilities(routing.samples.teacher, routing.slots)
        divergence = (teacher.exp() * (teacher - log_p)).sum(1)
        groups = torch.arange(routing.num_groups, device=log_p.device)
        member = (routing.groups[:, None] == groups).to(log_p.dtype)
        return sum_over_ranks(member.t() @ divergence) / routing.usage.rows.clamp_min(1)


class DistilledGate(Gate):
    """A plain gate (student) that learns the decisions of a trained attentive gate (teacher).

    The second phase of arXiv 2302.14703, attentive gate: the experts come from a checkpoint that was trained with
    ``AttentiveGate`` (``load_from``) and are frozen, norms included; the student is trained with the task loss
    plus KL(p_att || p). ``kl_weight=0`` is the paper's version, the task loss alone. The student decides, both in
    training and in evaluation. While the KL is computed, every expert runs; otherwise, and always in evaluation, only
    the K chosen ones. A checkpoint of this gate loads into a config with the plain student gate. Leave ``constraint``
    out, and freeze everything before the experts (``frozen_stages=4`` and ``FrozenFPN``), so that their inputs do not
    change::

        gate=dict(type='DistilledGate', teacher=dict(type='AttentiveGate', hidden_channels=128))

    Args:
        in_channels: C.
        num_experts: E.
        key_channels: channels of the experts' features; the layer knows them.
        teacher: the attentive gate, in a config its dict as it was trained; None takes its defaults.
        student: the plain gate, in a config its dict; None takes a ``GAPLinearGate``. Weights that the teacher's query
            network has under the same name and shape start from there, apart from a last layer of E outputs.
        kl_weight: factor of the KL, >= 0.

    Raises:
        ValueError: a negative ``kl_weight``, a teacher that is not attentive, or a student that is.
    """

    freezes_experts = True

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        key_channels: int,
        teacher: AttentiveGate | None = None,
        student: Gate | None = None,
        kl_weight: float = 1.0,
    ) -> None:
        super().__init__(in_channels, num_experts)
        # a teacher that was not given has yet to be loaded
        self.has_trained_teacher = teacher is not None
        self.teacher = AttentiveGate(in_channels, num_experts, key_channels) if teacher is None else teacher
        self.student = GAPLinearGate(in_channels, num_experts) if student is None else student
        if not isinstance(self.teacher, AttentiveGate):
            raise ValueError(f'teacher is a {type(self.teacher).__name__}, expected an AttentiveGate')
        if self.student.needs_keys or self.student.freezes_experts:
            raise ValueError(f'student is a {type(self.student).__name__}, expected a plain gate')
        self.kl_weight = checked_number('kl_weight', kl_weight)
        self.teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> DistilledGate:
        """The teacher stays as it is, norms included."""
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def needs_keys(self) -> bool:
        """Whether the teacher is asked: in training, for the KL."""
        return self.training and self.kl_weight > 0

    def constraints(self) -> list[Constraint]:
        return [DistillationConstraint(self.kl_weight)] if self.kl_weight else []

    def forward(self, feature: Tensor, keys: Tensor | None = None) -> Tensor:
        """(R, C, H, W) -> (R, E) logits of the student; ``keys`` are for the teacher."""
        if self.training and not self.has_trained_teacher:
            raise CheckpointError(
                'DistilledGate has no trained teacher: set load_from to a checkpoint of the same model that was '
                'trained with AttentiveGate'
            )
        return self.student(feature)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        stored = {key.removeprefix(prefix): key for key in state_dict if key.startswith(prefix)}
        parts = {name.split('.')[0] for name in stored}
        if stored and not parts & {'teacher', 'student'}:
            if 'to_key' not in parts:
                raise CheckpointError(
                    f'the checkpoint has a plain gate at {prefix.rstrip(".")}: DistilledGate needs a model that was '
                    'trained with AttentiveGate'
                )
            for name, own in self.teacher.state_dict().items():
                held = state_dict.get(f'{prefix}{name}')
                if held is None or held.shape != own.shape:
                    is_there = 'nothing' if held is None else f'shape {tuple(held.shape)}'
                    raise CheckpointError(
                        f'the checkpoint has {is_there} at {prefix}{name}, the teacher of the config shape '
                        f'{tuple(own.shape)}: load_from must name a model trained with the same AttentiveGate'
                    )
            for name, key in stored.items():
                state_dict[f'{prefix}teacher.{name}'] = state_dict.pop(key)
            for name, own in self.student.state_dict().items():
                value = state_dict.get(f'{prefix}teacher.query.{name}')
                if value is None or value.shape != own.shape or value.shape[:1] == (self.num_experts,):
                    value = own
                state_dict[f'{prefix}student.{name}'] = value.clone()
            parts = {'teacher'}
        self.has_trained_teacher = self.has_trained_teacher or 'teacher' in parts
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args, **kwargs)


def finish_distillation(model: nn.Module) -> nn.Module:
    """Replaces each distilled gate by its student, in place: the model is then that of a config with the plain gate.

    The experts can be trained again.

    Returns:
        The model.
    """
    for module in model.modules():
        if isinstance(module, Router) and isinstance(module.gate, DistilledGate):
            module.take_gate(module.gate.student)
        elif isinstance(module, ExpertGroup) and module.frozen_for_distillation:
            module.unfreeze()
    return model


def train_gates_alone(model: nn.Module) -> nn.Module:
    """Freezes every parameter except those of the distilled gates' students, in place; returns the model."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, DistilledGate):
            module.student.requires_grad_(True)
    return model
