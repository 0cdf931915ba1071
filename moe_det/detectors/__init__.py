"""Experts in the modules of any detector, by their paths, and whole detectors as experts."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported

# isort: split
from .mixture_of_detectors import MixtureOfDetectors
from .with_clusters import WithClusters
from .with_experts import WithExperts

__all__ = ['MixtureOfDetectors', 'WithClusters', 'WithExperts']
