"""Turns checkpoints into others: dense to experts and back, fewer experts, ONNX."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
