"""Detector parts with mixtures of experts."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported

# isort: split
from .frozen_fpn import FrozenFPN
from .moe_resnet import MoEResNet
from .moe_retina_head import MoERetinaHead

__all__ = ['FrozenFPN', 'MoEResNet', 'MoERetinaHead']
