"""Residual stages with experts: narrow experts, their cost, and the stage that holds them."""

from __future__ import annotations

import re
from typing import Any

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmdet.models.backbones.resnet import BasicBlock
from mmengine.model import Sequential
from torch import Tensor, nn

from ..layers.dense_start import start_from_dense
from ..layers.moe_layer import MoELayer
from ..layers.row_choice import check_no_row_is_lost
from ..layers.width import conv_cost


def projection(in_channels: int, out_channels: int, stride: int, conv_cfg: dict | None, norm_cfg: dict) -> Sequential:
    """1x1 convolution and norm, for a skip connection that changes shape."""
    return Sequential(
        build_conv_layer(conv_cfg, in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        build_norm_layer(norm_cfg, out_channels)[1],
    )


def narrow_stage(
    block: type[Any], inplanes: int, inner: int, planes: int, num_blocks: int, stride: int, dilation: int = 1, **kwargs
) -> Sequential:
    """A residual stage that is narrow inside and has the full stage's output (arXiv 2204.10598).

    With two BasicBlocks: C_in -> m -> m, then m -> C_out -> C_out, both skips by 1x1 convolution and norm. More
    blocks repeat m -> m in between; a Bottleneck counts m before its expansion.

    Args:
        block: BasicBlock or Bottleneck of mmdet.
        inplanes: C_in.
        inner: m.
        planes: C_out before the block's expansion.
        num_blocks: blocks of the stage, at least 2.
        stride: stride of the first block.
        dilation: dilation of all blocks.
        **kwargs: further arguments of the block.
    """
    conv_cfg, norm_cfg = kwargs.get('conv_cfg'), kwargs['norm_cfg']
    widths = [inner] * (num_blocks - 1) + [planes]
    blocks, channels = [], inplanes
    for i, width in enumerate(widths):
        out_channels = width * block.expansion
        block_stride = stride if i == 0 else 1
        skip = None
        if block_stride != 1 or channels != out_channels or i == 0:
            skip = projection(channels, out_channels, block_stride, conv_cfg, norm_cfg)
        blocks.append(
            block(inplanes=channels, planes=width, stride=block_stride, dilation=dilation, downsample=skip, **kwargs)
        )
        channels = out_channels
    return Sequential(*blocks)


def stage_cost(
    block: type[Any],
    inplanes: int,
    inner: int,
    planes: int,
    num_blocks: int,
    stride: int,
    style: str,
    narrow: bool = True,
) -> int:
    """Multiply-adds of a stage's convolutions per output pixel.

    Args:
        block: BasicBlock or Bottleneck.
        inplanes: input channels.
        inner: width of all blocks but the last, of all blocks when not ``narrow``.
        planes: width of the last block.
        num_blocks: number of blocks.
        stride: stride of the first block.
        style: where a Bottleneck strides: ``'pytorch'`` in its second convolution, ``'caffe'`` in its first.
        narrow: a stage as :func:`narrow_stage` builds it, else a plain one.
    """
    # in pytorch style the first convolution of a Bottleneck still runs at the resolution of the input
    first_pixels = stride**2 if style == 'pytorch' else 1
    widths = [inner] * (num_blocks - 1) + [planes] if narrow else [planes] * num_blocks
    total, channels = 0, inplanes
    for i, width in enumerate(widths):
        out_channels = width * block.expansion
        if block is BasicBlock:
            total += conv_cost(channels, width) + conv_cost(width, width)
        else:
            pixels = first_pixels if i == 0 else 1
            total += conv_cost(channels, width, 1) * pixels + conv_cost(width, width)
            total += conv_cost(width, out_channels, 1)
        if channels != out_channels or (narrow and i == 0):
            total += conv_cost(channels, out_channels, 1)
        channels = out_channels
    return total


class MoEStage(MoELayer):
    """One ResNet stage as experts, with an optional outer skip ("Residual" in arXiv 2204.10598).

    A checkpoint of the plain ResNet fills every expert of the same shape, plus noise.

    Args:
        skip: module of the outer skip, or None.
        **layer: arguments of :class:`~moe_det.layers.moe_layer.MoELayer`.
    """

    def __init__(self, skip: nn.Module | None, **layer) -> None:
        super().__init__(**layer)
        if skip is None:
            check_no_row_is_lost(self.settings, layer['where'])
        self.skip = skip

    def init_weights(self) -> None:
        """Initialises each expert as the backbone initialises a plain stage (zero last norm of every block)."""
        with self.expert_group.starting():
            for expert in self.expert_group.every_expert:
                if hasattr(expert, 'init_weights'):
                    expert.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        output = super().forward(x)
        return output if self.skip is None else output + self.skip(x)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        pattern = re.compile(re.escape(prefix) + r'(\d+\..+)')
        dense = {key: match[1] for key in state_dict if (match := pattern.match(key))}
        experts, label = f'{prefix}expert_group.experts.', prefix.rstrip('.')
        start_from_dense(state_dict, dense, self.expert_group, experts, self.settings, label)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
