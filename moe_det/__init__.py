"""Mixture-of-experts for object detection: an extension of MMDetection 3.x.

Importing the package checks the installed stack, puts torchvision's operators where mmcv has none, and registers
every class of :mod:`moe_det.registry`, so that one line in a config is enough::

    custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)
"""

from .compat import prepare_stack
from .version import __version__

prepare_stack()  # before anything imports mmdet: names the missing package, or supplies the missing operators

from .registry import register_all  # noqa: E402

register_all()

__all__ = ['__version__']
