"""What replaces a detector's modules: convolutions, FFNs, linear layers, and blocks after stages."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.transformer import FFN
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d
from mmcv.cnn.bricks.wrappers import Linear as WrappedLinear
from mmdet.models.backbones.swin import SwinBlock
from mmdet.models.detectors import BaseDetector
from mmdet.models.roi_heads import BaseRoIExtractor, BaseRoIHead
from torch import Tensor, nn

from ..errors import MoEConfigError
from ..layers.moe_block import MoEBlock
from ..layers.moe_conv import MoEConv2d
from ..layers.moe_ffn import MoEFFN
from ..layers.moe_linear import MoELinear
from ..layers.mu_moe import MuConv2d, MuFFN, MuLinear
from ..routing.regions import Regions
from ..routing.windows import WINDOW, Windows

BLOCK_NAME = 'moe_block'  # child of the module that a block was added to
LAST_OF_CLASSIFIER = 'fc'  # path in ResNetClassifier
BOX_HEAD = 'roi_head.bbox_head.'  # path of what is in the box heads of every two-stage detector


@dataclass(frozen=True)
class Replacement:
    """How modules of one kind get experts.

    Attributes:
        what: the kind in words, in the plural.
        fits: (module, its path) -> whether it is of the kind.
        build: (module, its path, MoE keys, detector) -> what stands in its place.
    """

    what: str
    fits: Callable[[nn.Module, str], bool]
    build: Callable[[Any, str, dict, BaseDetector], nn.Module]


def conv_of(module: nn.Module) -> str:
    """Name of the child that is a module's convolution: ``'conv'`` of a ConvModule, else ``''``."""
    return 'conv' if isinstance(module, ConvModule) else ''


def _in_place_of_conv(
    kind: type[MoEConv2d | MuConv2d], conv: nn.Conv2d, path: str, moe: dict, detector: BaseDetector
) -> nn.Module:
    keys = ('kernel_size', 'stride', 'padding', 'dilation', 'groups', 'padding_mode')
    shape = {key: getattr(conv, key) for key in keys}
    layer = kind(conv.in_channels, conv.out_channels, bias=conv.bias is not None, **shape, **moe)
    if layer.router is not None:
        layer.router.label = path
    return layer


def _is_conv(module: nn.Module, path: str) -> bool:
    return type(module) in (nn.Conv2d, WrappedConv2d)


def _is_pointwise(module: nn.Module, path: str) -> bool:
    plain: Any = module
    return _is_conv(module, path) and (plain.kernel_size, plain.padding, plain.groups) == ((1, 1), (0, 0), 1)


def _experts_of_ffn(ffn: FFN, path: str, moe: dict, detector: BaseDetector) -> MoEFFN:
    windows = None
    block = detector.get_submodule(path.rpartition('.')[0])
    if moe.get('unit') == WINDOW and isinstance(block, SwinBlock):
        windows = block.moe_windows = Windows(block.attn.window_size)
        block.register_forward_pre_hook(_note_map_size)
    return MoEFFN(ffn, path, windows, **moe)


def _note_map_size(block: SwinBlock, inputs: tuple) -> None:
    block.moe_windows.map_size = tuple(inputs[1])


def _experts_of_linear(linear: nn.Linear, path: str, moe: dict, detector: BaseDetector) -> MoELinear:
    return MoELinear(linear, path, followed_regions(detector.roi_head, path), **moe)


def followed_regions(roi_head: BaseRoIHead, path: str) -> Regions:
    """What is told the regions that a layer of a box head is given; the layers of one head share it.

    Args:
        roi_head: of the detector.
        path: of the layer, with the number of its stage in a cascade.
    """
    extractor = roi_head.bbox_roi_extractor
    if isinstance(extractor, nn.ModuleList):
        extractor = extractor[int(path.removeprefix(BOX_HEAD).partition('.')[0])]
    if not hasattr(extractor, 'moe_regions'):
        extractor.moe_regions = Regions()
        extractor.register_forward_pre_hook(_note_regions)
    return extractor.moe_regions


def _note_regions(extractor: BaseRoIExtractor, inputs: tuple) -> None:
    features, regions = inputs[:2]
    levels = torch.zeros(len(regions), dtype=torch.long)
    if hasattr(extractor, 'map_roi_levels'):
        levels = extractor.map_roi_levels(regions, len(features))
    extractor.moe_regions.note(regions[:, 0].long(), levels, len(features[0]))


def _with_block(module: nn.Module, path: str, moe: dict, detector: BaseDetector) -> nn.Module:
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


def _is_block(module: nn.Module, path: str) -> bool:
    """Whether a module gives one map of known channels; a neck as a whole gives several."""
    return path != 'neck' and output_channels(module) is not None and not isinstance(module, (nn.Conv2d, ConvModule))


REPLACEMENTS = {
    'MoEConv2d': Replacement('convolutions', _is_conv, functools.partial(_in_place_of_conv, MoEConv2d)),
    'MuConv2d': Replacement('1x1 convolutions', _is_pointwise, functools.partial(_in_place_of_conv, MuConv2d)),
    'MuFFN': Replacement(
        'FFNs', lambda module, path: type(module) is FFN, lambda ffn, path, mu, detector: MuFFN(ffn, path, **mu)
    ),
    'MuLinear': Replacement(
        'last linear layers of image classifiers',
        lambda module, path: path == LAST_OF_CLASSIFIER and type(module) is nn.Linear,
        lambda linear, path, mu, model: MuLinear(linear, path, **mu),
    ),
    'MoEFFN': Replacement('FFNs', lambda module, path: type(module) is FFN, _experts_of_ffn),
    'MoELinear': Replacement(
        'linear layers of box heads',
        lambda module, path: path.startswith(BOX_HEAD) and type(module) in (nn.Linear, WrappedLinear),
        _experts_of_linear,
    ),
    'MoEBlock': Replacement('stages and blocks', _is_block, _with_block),
}
