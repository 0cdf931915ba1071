"""Parameters, multiply-adds and memory of models with experts."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
