"""What replaces a detector's modules: convolutions, FFNs, and blocks after stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.transformer import FFN
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d
from torch import Tensor, nn

from ..errors import MoEConfigError
from ..layers.moe_block import MoEBlock
from ..layers.moe_conv import MoEConv2d
from ..layers.moe_ffn import MoEFFN

BLOCK_NAME = 'moe_block'  # child of the module that a block was added to


@dataclass(frozen=True)
class Replacement:
    """How modules of one kind get experts.

    Attributes:
        what: the kind in words, in the plural.
        fits: whether a module is of the kind.
        build: (module, its path, MoE keys) -> what stands in its place.
    """

    what: str
    fits: Callable[[nn.Module], bool]
    build: Callable[[nn.Module, str, dict], nn.Module]


def conv_of(module: nn.Module) -> str:
    """Name of the child that is a module's convolution: ``'conv'`` of a ConvModule, else ``''``."""
    return 'conv' if isinstance(module, ConvModule) else ''


def _experts_of_conv(conv: nn.Conv2d, path: str, moe: dict) -> MoEConv2d:
    keys = ('kernel_size', 'stride', 'padding', 'dilation', 'groups', 'padding_mode')
    shape = {key: getattr(conv, key) for key in keys}
    layer = MoEConv2d(conv.in_channels, conv.out_channels, bias=conv.bias is not None, **shape, **moe)
    if layer.router is not None:
        layer.router.label = path
    return layer


def _experts_of_ffn(ffn: FFN, path: str, moe: dict) -> MoEFFN:
    return MoEFFN(ffn, path, **moe)


def _with_block(module: nn.Module, path: str, moe: dict) -> nn.Module:
    """The module itself, whose output goes through a :class:`MoEBlock`; its weights keep their names."""
    moe = dict(moe)
    channels = moe.pop('in_channels', None) or output_channels(module)
    if channels is None:
        raise MoEConfigError(
            f'{path}: {type(module).__name__} does not tell how many channels it gives; add in_channels=...'
        )
    block = MoEBlock(channels, **moe)
    if block.moe.router is not None:
        block.moe.router.label = path
    module.add_module(BLOCK_NAME, block)
    if not isinstance(module, nn.Sequential):  # which runs its last child anyway
        module.register_forward_hook(_through_block)
    return module


def _through_block(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return getattr(module, BLOCK_NAME)(output)


def output_channels(module: nn.Module) -> int | None:
    """Channels of the map that a stage or block of a backbone gives; None where it does not tell."""
    if isinstance(module, nn.Sequential):
        return output_channels(module[-1]) if len(module) else None
    for name in ('conv3', 'conv2', 'final_conv'):  # Bottleneck, BasicBlock, CSPLayer
        if hasattr(module, name):
            return getattr(getattr(module, name), 'out_channels', None)
    channels = getattr(module, 'out_channels', None)
    return channels if isinstance(channels, int) else None


REPLACEMENTS = {
    'MoEConv2d': Replacement(
        'convolutions', lambda module: type(module) in (nn.Conv2d, WrappedConv2d), _experts_of_conv
    ),
    'MoEFFN': Replacement('FFNs', lambda module: type(module) is FFN, _experts_of_ffn),
    'MoEBlock': Replacement(
        'stages and blocks',
        lambda module: output_channels(module) is not None and not isinstance(module, (nn.Conv2d, ConvModule)),
        _with_block,
    ),
}
