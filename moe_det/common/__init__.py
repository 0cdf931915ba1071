"""What the commands, hooks and checks share: console, configs, checkpoints, atomic files, work in several processes."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
