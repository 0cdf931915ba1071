"""A residual block with experts, for the ``plugins`` slot of mmdet's ResNets."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import build_norm_layer
from mmengine.model import kaiming_init
from torch import Tensor, nn

from ..checks import check_count
from .moe_layer import MoELayer
from .settings import MoESettings, check_expert_norm


class _BlockExpert(nn.Sequential):
    """1x1, 3x3, 1x1 convolutions with norms; the last norm starts at zero."""

    def __init__(self, channels: int, inner_channels: int, norm_cfg: dict) -> None:
        super().__init__(
            nn.Conv2d(channels, inner_channels, 1, bias=False),
            build_norm_layer(norm_cfg, inner_channels)[1],
            nn.ReLU(inplace=True),
            nn.Conv2d(inner_channels, inner_channels, 3, padding=1, bias=False),
            build_norm_layer(norm_cfg, inner_channels)[1],
            nn.ReLU(inplace=True),
            nn.Conv2d(inner_channels, channels, 1, bias=False),
            build_norm_layer(norm_cfg, channels)[1],
        )


class MoEBlock(nn.Module):
    """x + sum_k w_k E_k(x) with narrow bottleneck experts (arXiv 2204.10598, "residual" variant).

    The experts' last norm starts at zero, so that a pretrained backbone initially computes what it did without the
    block. For any detector with a Bottleneck ResNet::

        backbone=dict(plugins=[dict(cfg=dict(type='MoEBlock', num_experts=4, top_k=2),
                                    stages=(False, False, False, True), position='after_conv3')])

    Args:
        in_channels: C; mmdet passes it.
        reduction: C / inner channels of an expert.
        norm_cfg: norm layers of the experts.
        num_levels: calls of the module in one step, usually 1.
        **moe: keys of :class:`~moe_det.layers.settings.MoESettings`.

    Raises:
        MoEConfigError: MoE keys that cannot be built from.
    """

    _abbr_ = 'moe_block'

    def __init__(
        self,
        in_channels: int,
        reduction: int = 4,
        norm_cfg: dict | None = None,
        num_levels: int = 1,
        **moe: Any,
    ) -> None:
        super().__init__()
        where = f'MoEBlock({in_channels})'
        settings = MoESettings.from_config(moe, where)
        check_count(where, 'reduction', reduction)
        check_count(where, 'num_levels', num_levels)
        inner_channels = max(1, in_channels // reduction)
        norm_cfg = norm_cfg or {'type': 'BN'}
        check_expert_norm(where, norm_cfg)
        self.moe = MoELayer(
            settings, in_channels, lambda: _BlockExpert(in_channels, inner_channels, norm_cfg), where, num_levels
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming convolutions, and a zero last norm in every expert."""
        with self.moe.expert_group.starting():
            if self.moe.settings.expert is None:
                for expert in self.moe.expert_group.every_expert:
                    for module in expert:
                        if isinstance(module, nn.Conv2d):
                            kaiming_init(module)
                    nn.init.zeros_(expert[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x + self.moe(x)
