"""What a RetinaNet head fixes about a branch, and its parts of that shape."""

from __future__ import annotations

from dataclasses import dataclass

from mmcv.cnn import ConvModule
from torch import nn

from ..layers.width import conv_cost


@dataclass(frozen=True)
class BranchShape:
    """What the head fixes about a branch.

    Attributes:
        name: ``'cls'`` or ``'reg'``.
        in_channels: C of the pyramid.
        feat_channels: channels of the tower.
        out_channels: channels of the predictor.
        stacked_convs: convolutions of the tower.
        conv_cfg: mmdet's conv_cfg of the tower.
        norm_cfg: mmdet's norm_cfg of the tower.
    """

    name: str
    in_channels: int
    feat_channels: int
    out_channels: int
    stacked_convs: int
    conv_cfg: dict | None
    norm_cfg: dict | None

    def conv(self, in_channels: int, out_channels: int) -> ConvModule:
        """One 3x3 convolution of the tower."""
        return ConvModule(
            in_channels, out_channels, 3, stride=1, padding=1, conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg
        )

    def tower(self, inner: int, out_channels: int) -> nn.ModuleList:
        """The convolutions with ``inner`` channels between them and ``out_channels`` after the last."""
        widths = [inner] * (self.stacked_convs - 1) + [out_channels] * bool(self.stacked_convs)
        inputs = [self.in_channels, *widths]
        return nn.ModuleList(self.conv(a, b) for a, b in zip(inputs, widths, strict=False))

    @property
    def last_inputs(self) -> int:
        """Input channels of the tower's last convolution."""
        return self.in_channels if self.stacked_convs == 1 else self.feat_channels

    def predictor(self, in_channels: int) -> nn.Conv2d:
        """The 3x3 convolution that predicts classes or boxes for every anchor."""
        return nn.Conv2d(in_channels, self.out_channels, 3, padding=1)

    def cost(self, inner: int, with_predictor: bool) -> int:
        """Multiply-adds per pixel of an expert with ``inner`` channels; see :meth:`tower`."""
        last = inner if with_predictor else self.feat_channels
        widths = [self.in_channels] + [inner] * (self.stacked_convs - 1) + [last] * bool(self.stacked_convs)
        total = sum(conv_cost(a, b) for a, b in zip(widths, widths[1:], strict=False))
        return total + (conv_cost(widths[-1], self.out_channels) if with_predictor else 0)
