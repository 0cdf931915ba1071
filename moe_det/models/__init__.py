"""Detector parts with mixtures of experts."""

from .frozen_fpn import FrozenFPN
from .moe_resnet import MoEResNet
from .moe_retina_head import MoERetinaHead

__all__ = ['FrozenFPN', 'MoEResNet', 'MoERetinaHead']
