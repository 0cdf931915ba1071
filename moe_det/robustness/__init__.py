"""What a long training withstands: interruption, values that are not finite, damaged images."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
