"""ResNets for images of about 32 pixels: the stem keeps their resolution."""

from __future__ import annotations

from mmcv.cnn import build_conv_layer
from mmdet.models.backbones.resnet import ResNet
from torch import nn

from ..errors import MoEConfigError


def keep_resolution(resnet: ResNet) -> None:
    """Gives a ResNet, in place, the stem for CIFAR: a 3x3 convolution with stride 1, norm, ReLU, and no max-pooling.

    Args:
        resnet: with its stem built.

    Raises:
        MoEConfigError: the ResNet has a deep stem.
    """
    if resnet.deep_stem:
        raise MoEConfigError(
            'backbone.deep_stem=True: the stem for small images is a single 3x3 convolution; take one of the two out'
        )
    old = resnet.conv1
    resnet.conv1 = build_conv_layer(
        resnet.conv_cfg, old.in_channels, old.out_channels, kernel_size=3, stride=1, padding=1, bias=False
    )
    resnet.maxpool = nn.Identity()


class SmallImageResNet(ResNet):
    """ResNet for images of about 32 pixels, without experts: the stem does not reduce their resolution.

    The baseline of arXiv 2204.10598 on CIFAR: 3x3 stem with stride 1, norm, ReLU, no max-pooling, then mmdet's stages.
    ``MoEResNet(small_images=True)`` is the same with experts. ``init_cfg=[]`` keeps PyTorch's initialisation.

    Args:
        depth: 18, 34, 50, 101 or 152.
        **kwargs: mmdet's ResNet.

    Raises:
        MoEConfigError: ``deep_stem=True``.
    """

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        keep_resolution(self)
