"""What runs a model: hooks, and the functions behind the command-line tools."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
