"""Studies of trained models behind the analysis commands: each asks a model and hands the answers to analysis."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
