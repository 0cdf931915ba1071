"""Asking a trained detector questions: where each detection came from, and what changes with other routing."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
