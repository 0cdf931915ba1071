"""Data sets of the package: synthetic shapes in COCO format (:mod:`~moe_det.datasets.shapes`)."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
