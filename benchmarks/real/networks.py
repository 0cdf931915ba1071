"""Networks whose pretrained weights are to be had without a model zoo; configs name them through custom_imports.

NanoDet-g is https://github.com/RangiLyu/nanodet (Apache-2.0), a detector of plain convolutions with the batch norm
folded into them; EfficientNet-Lite is mmdet's EfficientNet without squeeze-and-excitation and with ReLU6.
"""

from __future__ import annotations

import torch
from mmdet.models.backbones import EfficientNet
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 80  # of COCO
BINS = 11  # of a side's distance: 0 to 10 strides
STRIDES = (8, 16, 32)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution with bias and LeakyReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1))


class Stage(nn.Module):
    """A first convolution, pairs of them that are concatenated, and a last one beside the first one's output.

    Args:
        inputs: channels.
        width: channels of the first and the last convolution.
        pairs: number of pairs, each of half that width.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, width: int, pairs: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        self.first = conv(inputs, width, stride)
        self.pairs = nn.ModuleList(nn.ModuleList([conv(width, half), conv(half, half)]) for _ in range(pairs))
        self.last = conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 2 width, H / stride, W / stride)."""
        first = x = self.first(x)
        for one, other in self.pairs:
            near = one(x)
            x = torch.cat([other(near), near], 1)
        return torch.cat([self.last(x), first], 1)


@MODELS.register_module()
class NanoDetG(BaseModule):
    """The backbone of NanoDet-g: C3, C4 and C5 with 128, 256 and 512 channels.

    Args:
        frozen: nothing of it trains.
        init_cfg: as in every module of mmengine.
    """

    def __init__(self, frozen: bool = False, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.stem = conv(3, 32, stride=2)
        self.stages = nn.ModuleList(
            [Stage(32, 32, 1, 1), Stage(64, 64, 2, 2), Stage(128, 128, 2, 2), Stage(256, 256, 3, 2)]
        )
        if frozen:
            self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> three maps, of strides 8, 16 and 32."""
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps[1:])


class WholeNanoDetG(nn.Module):
    """NanoDet-g with its pyramid and its head, to check that the backbone is what its authors trained.

    Its convolutions have the order of its file, see :func:`real.weights.nanodet_tensors`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = NanoDetG()
        self.laterals = nn.ModuleList(nn.Conv2d(channels, 128, 1) for channels in (128, 256, 512))
        self.heads = nn.ModuleList(
            nn.Sequential(conv(128, 128), nn.Conv2d(128, CLASSES + 4 * BINS, 1)) for _ in STRIDES
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> of each level (N, outputs, H / stride, W / stride)."""
        fine, middle, coarse = (lateral(c) for lateral, c in zip(self.laterals, self.backbone(x), strict=True))
        middle = middle + _resized(coarse, middle)
        fine = fine + _resized(middle, fine)
        middle = middle + _resized(fine, middle)
        coarse = coarse + _resized(middle, coarse)
        return [head(level) for head, level in zip(self.heads, (fine, middle, coarse), strict=True)]


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode='bilinear', align_corners=False)


@MODELS.register_module()
class EfficientNetLite0(EfficientNet):
    """EfficientNet-B0 without squeeze-and-excitation and with ReLU6, as Google's EfficientNet-Lite0.

    Args:
        **settings: of mmdet's EfficientNet.
    """

    # a block is kernel, channels, ratio of squeeze-and-excitation, stride, expansion, kind
    layer_settings = {
        'b': [[[block[0], block[1], 0, *block[3:]] for block in stage] for stage in EfficientNet.layer_settings['b']]
    }

    def __init__(self, **settings: object) -> None:
        super().__init__(arch='b0', act_cfg=dict(type='ReLU6'), **settings)
