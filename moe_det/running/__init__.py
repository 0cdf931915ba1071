"""Training and testing: launching, processes, mixed precision, trained models, readable errors."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
