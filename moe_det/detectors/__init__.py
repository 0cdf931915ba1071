"""Experts in the modules of any detector, by their paths."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported

# isort: split
from .with_clusters import WithClusters
from .with_experts import WithExperts

__all__ = ['WithClusters', 'WithExperts']
