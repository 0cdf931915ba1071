"""ResNet whose stages can be mixtures of experts."""

from __future__ import annotations

import logging
import re

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmdet.models.backbones.resnet import BasicBlock, ResNet
from mmdet.models.layers import ResLayer
from mmengine.logging import print_log
from mmengine.model import Sequential
from torch import Tensor, nn

from ..errors import MoEConfigError, unknown_name
from ..layers.moe_layer import MoELayer
from ..layers.settings import MoESettings, check_expert_norm, check_flag, split_settings
from ..layers.width import conv_cost, inner_width
from ..routing.experts import copy_dense_to_experts

# inner width / stage width of the narrow experts of arXiv 2204.10598: two cost about one stage of ResNet-18
PAPER_WIDTHS = (25 / 64, 50 / 128, 90 / 256, 180 / 512)


def _projection(in_channels: int, out_channels: int, stride: int, conv_cfg: dict | None, norm_cfg: dict) -> Sequential:
    """1x1 convolution and norm, for a skip connection that changes shape."""
    return Sequential(
        build_conv_layer(conv_cfg, in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        build_norm_layer(norm_cfg, out_channels)[1],
    )


def narrow_stage(
    block: type, inplanes: int, inner: int, planes: int, num_blocks: int, stride: int, dilation: int = 1, **kwargs
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
    conv_cfg, norm_cfg = kwargs.get('conv_cfg'), kwargs.get('norm_cfg')
    widths = [inner] * (num_blocks - 1) + [planes]
    blocks, channels = [], inplanes
    for i, width in enumerate(widths):
        out_channels = width * block.expansion
        block_stride = stride if i == 0 else 1
        skip = None
        if block_stride != 1 or channels != out_channels or i == 0:
            skip = _projection(channels, out_channels, block_stride, conv_cfg, norm_cfg)
        blocks.append(
            block(inplanes=channels, planes=width, stride=block_stride, dilation=dilation, downsample=skip, **kwargs)
        )
        channels = out_channels
    return Sequential(*blocks)


def stage_cost(
    block: type, inplanes: int, inner: int, planes: int, num_blocks: int, stride: int, style: str, narrow: bool = True
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
        stage: stage number from 1, for messages.
        **layer: arguments of :class:`~moe_det.layers.moe_layer.MoELayer`.
    """

    def __init__(self, skip: nn.Module | None, stage: int, **layer) -> None:
        super().__init__(**layer)
        self.skip = skip
        self.stage = stage

    def init_weights(self) -> None:
        """Initialises each expert as the backbone initialises a plain stage (zero last norm of every block)."""
        for expert in [*self.expert_group.experts, self.expert_group.shared]:
            if expert is not None:
                expert.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        output = super().forward(x)
        return output if self.skip is None else output + self.skip(x)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        pattern = re.compile(re.escape(prefix) + r'(\d+\..+)')
        dense = {key: match[1] for key in state_dict if (match := pattern.match(key))}
        if dense:
            problems = copy_dense_to_experts(
                state_dict, dense, self.expert_group, f'{prefix}expert_group.experts.', self.settings.copy_noise
            )
            copied = len(dense) - len(problems)
            print_log(
                f'stage {self.stage}: {copied} of {len(dense)} tensors of the plain stage copied into '
                f'{len(self.expert_group)} experts' + (f'; not copied: {problems[0]}, ...' if problems else ''),
                logger='current',
                level=logging.WARNING if problems else logging.INFO,
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class MoEResNet(ResNet):
    """ResNet with mixtures of experts in chosen stages (arXiv 2204.10598).

    ResNet-18/34 get narrow BasicBlock experts (in ResNet-18 two of them cost about one stage, in ResNet-34 less);
    ResNet-50/101/152 get experts that are full stages of Bottlenecks. Every other key is mmdet's::

        backbone=dict(type='MoEResNet', depth=50, moe=dict(
            stages=(4,), num_experts=4, top_k=2, constraint=dict(type='KLConstraint', weight=0.25)))

    Args:
        depth: 18, 34, 50, 101 or 152.
        moe: keys of :class:`~moe_det.layers.settings.MoESettings` and

            - ``stages``: numbers from 1 to 4 of the stages to replace.
            - ``residual``: adds an outer skip, identity where shapes agree, else a strided 1x1 convolution and norm.
            - ``width``: inner width of an expert as a share of the stage's, ``'matched'`` for K experts at the cost
              of one stage, or None: the paper's narrow widths for BasicBlocks, 1.0 for Bottlenecks.
        **kwargs: mmdet's ResNet.

    Raises:
        MoEConfigError: MoE keys that cannot be built from, or that name no stage.
    """

    def __init__(self, depth: int, moe: dict, **kwargs) -> None:
        if depth not in self.arch_settings:
            raise MoEConfigError(f'backbone.depth: {unknown_name("depth", depth, map(str, self.arch_settings))}')
        if not isinstance(moe, dict):
            raise MoEConfigError(f'backbone.moe={moe!r}: expected a dict')
        ours, own = split_settings(dict(moe))
        self._moe_stages = self._check_stages(own.pop('stages', ()), kwargs.get('num_stages', 4))
        self._moe_residual = own.pop('residual', False)
        check_flag('backbone.moe', 'residual', self._moe_residual)
        self._moe_width = own.pop('width', None)
        if own:
            known = (*MoESettings.__dataclass_fields__, 'stages', 'residual', 'width')
            raise MoEConfigError(f'backbone.moe: {unknown_name("key", next(iter(own)), known)}')
        self._moe_settings = MoESettings.from_config(ours, 'backbone.moe')
        check_expert_norm('backbone.moe', kwargs.get('norm_cfg'))
        self._stage_number = 0
        super().__init__(depth=depth, **kwargs)

    @staticmethod
    def _check_stages(stages: object, num_stages: int) -> tuple[int, ...]:
        valid = isinstance(stages, (list, tuple)) and all(
            isinstance(s, int) and not isinstance(s, bool) and 1 <= s <= num_stages for s in stages
        )
        if not valid or not stages or len(set(stages)) != len(stages):
            raise MoEConfigError(
                f'backbone.moe.stages={stages!r}: expected at least one stage number from 1 to {num_stages}; '
                'without one there would be no MoE layer'
            )
        return tuple(stages)

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Builds the stages in order; the chosen ones as :class:`MoEStage`."""
        self._stage_number += 1
        if self._stage_number not in self._moe_stages:
            return super().make_res_layer(**kwargs)
        return self._make_moe_stage(self._stage_number, kwargs)

    def _make_moe_stage(self, stage: int, kwargs: dict) -> MoEStage:
        where = f'backbone.moe (stage {stage})'
        block, inplanes, planes, stride = (kwargs[key] for key in ('block', 'inplanes', 'planes', 'stride'))
        if self._moe_settings.unit == 'patch' and stride != 1:
            raise MoEConfigError(f"{where}.grid: unit='patch' does not fit a stage with stride {stride}")
        inner = self._inner_width(stage, kwargs, where)

        def make_expert() -> nn.Module:
            if inner is None:
                return ResLayer(**kwargs)
            rest = {key: value for key, value in kwargs.items() if key not in ('avg_down', 'planes')}
            return narrow_stage(**rest, planes=planes, inner=inner)

        skip = None
        if self._moe_residual:
            out_channels = planes * block.expansion
            same = stride == 1 and inplanes == out_channels
            skip = (
                nn.Identity()
                if same
                else _projection(inplanes, out_channels, stride, kwargs['conv_cfg'], kwargs['norm_cfg'])
            )
        return MoEStage(
            skip=skip,
            stage=stage,
            settings=self._moe_settings,
            in_channels=inplanes,
            make_expert=make_expert,
            where=where,
            out_channels=planes * block.expansion,
        )

    def _inner_width(self, stage: int, kwargs: dict, where: str) -> int | None:
        """Channels inside an expert; None for experts that are whole stages."""
        block, planes = kwargs['block'], kwargs['planes']
        if self._moe_width is None:
            if block is not BasicBlock:
                return None
            return max(1, int(PAPER_WIDTHS[stage - 1] * planes))

        def cost(inner: int, narrow: bool = True) -> int:
            names = ('block', 'inplanes', 'planes', 'num_blocks', 'stride', 'style')
            return stage_cost(inner=inner, narrow=narrow, **{name: kwargs[name] for name in names})

        dense_cost = cost(planes, narrow=False)
        return inner_width(self._moe_width, planes, cost, dense_cost, self._moe_settings.top_k, where)
