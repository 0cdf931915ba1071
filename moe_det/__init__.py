"""Mixture-of-experts for object detection: an extension of MMDetection 3.x.

One line in a config is enough::

    custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)

It checks the installed stack, puts torchvision's operators where mmcv has none, and registers every class of
:mod:`moe_det.registry`. Without MMDetection, :mod:`moe_det.routing` and :mod:`moe_det.analysis` can be used.
"""

from .activation import register_with_mmdet
from .version import __version__

register_with_mmdet()

__all__ = ['__version__']
