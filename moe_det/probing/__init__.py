"""Probes a trained detector: where each detection came from, and what changes under other routings."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
