"""Hooks of a training with experts: balance, schedules, auxiliary losses, experts by object size."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
