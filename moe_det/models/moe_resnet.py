"""ResNet whose stages, or single convolutions, can be mixtures of experts."""

from __future__ import annotations

from typing import Any

from mmdet.models.backbones.resnet import BasicBlock, ResNet
from mmdet.models.layers import ResLayer
from torch import nn

from ..checks import check_flag, is_integer
from ..errors import MoEConfigError, unknown_name
from ..layers.moe_conv import MoEConv2d
from ..layers.settings import MoESettings, check_expert_norm, split_settings
from ..layers.width import inner_width
from .resnet_stages import MoEStage, narrow_stage, projection, stage_cost
from .small_images import keep_resolution

STEM = 'stem'

# inner width / stage width of the narrow experts of arXiv 2204.10598: two cost about one stage of ResNet-18
PAPER_WIDTHS = (25 / 64, 50 / 128, 90 / 256, 180 / 512)


def _is_stage(value: object, num_stages: int) -> bool:
    return is_integer(value, 1) and value <= num_stages


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
            - ``convs``: places where a single convolution has experts instead of a whole stage, which are then bare
              convolutions: ``'stem'``, or the number of a stage whose second block's 3x3 ``conv2`` is replaced.
            - ``residual``: adds an outer skip, identity where shapes agree, else a strided 1x1 convolution and norm.
            - ``width``: inner width of an expert as a share of the stage's, ``'matched'`` for the experts that a row
              runs, shared ones included, at the cost of one stage, or None: the paper's narrow widths for BasicBlocks,
              1.0 for Bottlenecks.
        small_images: use the CIFAR stem, a 3x3 convolution with stride 1 and no max-pooling.
        **kwargs: mmdet's ResNet. ``init_cfg=[]`` keeps PyTorch's initialisation.

    Raises:
        MoEConfigError: MoE keys that cannot be built from, or that name no stage.
    """

    conv1: nn.Module  # ResNet's

    def __init__(self, depth: int, moe: dict, small_images: bool = False, **kwargs) -> None:
        if depth not in self.arch_settings:
            raise MoEConfigError(f'backbone.depth: {unknown_name("depth", depth, map(str, self.arch_settings))}')
        if not isinstance(moe, dict):
            raise MoEConfigError(f'backbone.moe={moe!r}: expected a dict')
        ours, own = split_settings(dict(moe))
        num_stages = kwargs.get('num_stages', 4)
        self._moe_convs = self._check_convs(own.pop('convs', ()), num_stages)
        self._moe_stages = self._check_stages(own.pop('stages', ()), num_stages)
        self._moe_residual = own.pop('residual', False)
        check_flag('backbone.moe', 'residual', self._moe_residual)
        self._moe_width = own.pop('width', None)
        for key, value in (('residual', self._moe_residual), ('width', self._moe_width)):
            if value and not self._moe_stages:
                raise MoEConfigError(f'backbone.moe.{key}={value!r}: is about whole stages, and stages=() has none')
        if own:
            known = (*MoESettings.__dataclass_fields__, 'stages', 'convs', 'residual', 'width')
            raise MoEConfigError(f'backbone.moe: {unknown_name("key", next(iter(own)), known)}')
        self._moe_settings = MoESettings.from_config(ours, 'backbone.moe')
        if self._moe_stages:  # a convolution's experts have no norms
            check_expert_norm('backbone.moe', kwargs.get('norm_cfg'))
        check_flag('backbone', 'small_images', small_images)
        self._small_images = small_images
        # PyTorch's initialisation was requested, while MoEConv2d uses that of mmcv's convolutions
        self._default_init = kwargs.get('init_cfg') is not None and not kwargs['init_cfg']
        self._stage_number = 0
        super().__init__(depth=depth, **kwargs)

    def _check_stages(self, stages: Any, num_stages: int) -> tuple[int, ...]:
        valid = isinstance(stages, (list, tuple)) and all(_is_stage(s, num_stages) for s in stages)
        if not valid or not (stages or self._moe_convs) or len(set(stages)) != len(stages):
            raise MoEConfigError(
                f'backbone.moe.stages={stages!r}: expected at least one stage number from 1 to {num_stages}; '
                'without one there would be no MoE layer'
            )
        both = [s for s in stages if s in self._moe_convs]
        if both:
            raise MoEConfigError(
                f'backbone.moe: stage {both[0]} is in stages={tuple(stages)} and in convs={self._moe_convs}: either '
                'the whole stage or one of its convolutions has experts'
            )
        return tuple(stages)

    @staticmethod
    def _check_convs(convs: Any, num_stages: int) -> tuple[int | str, ...]:
        valid = isinstance(convs, (list, tuple)) and all(c == STEM or _is_stage(c, num_stages) for c in convs)
        if not valid or len(set(convs)) != len(convs):
            raise MoEConfigError(
                f"backbone.moe.convs={convs!r}: expected a tuple of '{STEM}' and stage numbers from 1 to {num_stages}, "
                'each at most once'
            )
        return tuple(convs)

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        if self._small_images:
            keep_resolution(self)
        if STEM in self._moe_convs:
            if self.deep_stem:
                raise MoEConfigError(f"backbone.moe.convs: '{STEM}' needs a stem of one convolution, not deep_stem")
            self.conv1 = self._make_moe_conv(self.conv1, STEM)

    def _make_moe_conv(self, conv: nn.Module, place: int | str) -> MoEConv2d:
        """Experts of a convolution's shape."""
        where = f'backbone.moe ({place if place == STEM else f"stage {place}"})'
        if type(conv) is not nn.Conv2d:
            raise MoEConfigError(
                f'{where}.convs: the convolution there is a {type(conv).__name__} (conv_cfg or dcn); experts replace a '
                'plain Conv2d'
            )
        keys = ('kernel_size', 'stride', 'padding', 'dilation', 'groups', 'padding_mode')
        settings = {key: getattr(self._moe_settings, key) for key in MoESettings.__dataclass_fields__}
        layer = MoEConv2d(
            conv.in_channels,
            conv.out_channels,
            bias=conv.bias is not None,
            **{key: getattr(conv, key) for key in keys},
            **settings,
        )
        if self._default_init:
            for expert in layer.expert_group.every_expert:
                expert.reset_parameters()
        return layer

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Builds the stages in order; the chosen ones as :class:`MoEStage`, or with one convolution of experts."""
        self._stage_number += 1
        if self._stage_number in self._moe_stages:
            return self._make_moe_stage(self._stage_number, kwargs)
        stage = super().make_res_layer(**kwargs)
        if self._stage_number in self._moe_convs:
            stage[1].conv2 = self._make_moe_conv(stage[1].conv2, self._stage_number)
        return stage

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
                else projection(inplanes, out_channels, stride, kwargs['conv_cfg'], kwargs['norm_cfg'])
            )
        return MoEStage(
            skip=skip,
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
        return inner_width(self._moe_width, planes, cost, dense_cost, self._moe_settings.experts_run, where)
