"""The check of a data set in COCO's format: annotation file and images, entry by entry."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported
from .entries import check_entries
from .images import ImageEntry, Reading, check_images
from .report import BROKEN_IMAGE, KINDS, Kind, Report

__all__ = ['BROKEN_IMAGE', 'KINDS', 'ImageEntry', 'Kind', 'Reading', 'Report', 'check_entries', 'check_images']
