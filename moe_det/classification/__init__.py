"""The image classifiers of the papers, with their data; nothing of the detectors depends on them."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
