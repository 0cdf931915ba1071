"""Builds gates from configs, also those that hold other gates."""

from __future__ import annotations

from ..errors import MoEConfigError
from ..registry import GATES, build_named
from ..routing.attention import AttentiveGate
from ..routing.distillation import DistilledGate
from ..routing.gates import Gate


def build_gate(cfg: dict, where: str, in_channels: int, num_experts: int, key_channels: int | None) -> Gate:
    """Builds a gate and the gates in its config.

    Args:
        cfg: a dict with ``type``.
        where: the config key that holds ``cfg``, for messages.
        in_channels: channels of the map that the gate sees.
        num_experts: E.
        key_channels: channels of the experts' features; None where a gate cannot see them.

    Raises:
        MoEConfigError: an unknown gate, arguments that it refuses, or an attentive gate where no expert is seen.
    """
    cls = _class_of(cfg)
    arguments = {'in_channels': in_channels, 'num_experts': num_experts}
    if cls is None or not issubclass(cls, (AttentiveGate, DistilledGate)):
        return build_named(GATES, cfg, where, **arguments)
    if key_channels is None:
        raise MoEConfigError(f'{where}: {cls.__name__} needs the features of experts, which are not there')
    hidden = cfg.get('hidden_channels', AttentiveGate.default_hidden_channels)
    inner = {'query': (hidden, None), 'teacher': (num_experts, key_channels), 'student': (num_experts, None)}
    cfg = dict(cfg)
    for name, (outputs, keys) in inner.items():
        if cfg.get(name) is not None:
            cfg[name] = build_gate(cfg[name], f'{where}.{name}', in_channels, outputs, keys)
    gate = build_named(GATES, cfg, where, key_channels=key_channels, **arguments)
    if isinstance(gate, DistilledGate):
        gate.has_trained_teacher = False  # a checkpoint brings it
    return gate


def _class_of(cfg: object) -> type | None:
    """The class that a config names; None where the name is unknown, which build_named reports."""
    name = cfg.get('type') if isinstance(cfg, dict) else None
    return name if isinstance(name, type) else GATES.get(name) if isinstance(name, str) else None
