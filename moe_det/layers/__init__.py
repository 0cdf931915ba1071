"""MoE layers and those of them that mmdet builds."""

from .. import registry as _registry  # noqa: F401 - first, or a module would be registered half imported

# isort: split
from .moe_block import MoEBlock
from .moe_conv import MoEConv2d
from .moe_ffn import MoEFFN
from .moe_layer import MoELayer
from .moe_linear import MoELinear
from .mu_moe import MuConv2d, MuFFN, MuLinear
from .settings import MoESettings

__all__ = ['MoEBlock', 'MoEConv2d', 'MoEFFN', 'MoELayer', 'MoELinear', 'MoESettings', 'MuConv2d', 'MuFFN', 'MuLinear']
