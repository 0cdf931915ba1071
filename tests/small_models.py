"""Small heads, detectors, configs and batches that several tests build."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

import moe_det  # noqa: F401  registers the MoE classes and supplies missing operators

torch.set_num_threads(1)  # these models are so small that waking a second thread costs more than it computes

REPOSITORY = Path(__file__).resolve().parents[1]
CLASSES = 3
CHANNELS = 8
ANCHORS = 9
STRIDES = (8, 16, 32, 64, 128)
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'


@contextlib.contextmanager
def mmdet_scope() -> Iterator[None]:
    """Names in configs are looked up as a run of mmdet looks them up."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def build(cfg: dict) -> nn.Module:
    """Builds a module from mmdet's registry."""
    with mmdet_scope():
        return MODELS.build(ConfigDict(cfg))


def initialise(module: nn.Module) -> nn.Module:
    """Calls ``init_weights`` as a run does."""
    with mmdet_scope():
        module.init_weights()
    return module


def spread_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives weights and biases values at which outputs differ clearly from place to place, unlike at initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return module


# -- heads -------------------------------------------------------------------------------------------------------


def head(moe: dict | None = None, **changes) -> nn.Module:
    """A RetinaHead with 8 channels and 2 stacked convolutions, or with ``moe`` the head with experts."""
    cfg = config(f"_base_ = '{RETINANET}'").model
    settings = {
        **cfg.bbox_head,
        'num_classes': CLASSES,
        'in_channels': CHANNELS,
        'feat_channels': CHANNELS,
        'stacked_convs': 2,
        'train_cfg': cfg.train_cfg,
        'test_cfg': cfg.test_cfg,
        **changes,
    }
    if moe is not None:
        settings.update(type='MoERetinaHead', moe=moe)
    return build(settings)


def pyramid(images: int = 2, size: int = 64, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Random maps of five levels whose means differ between images and levels; the last ones are 1x1 for size 64."""
    generator = torch.Generator().manual_seed(0)
    maps = []
    for stride in STRIDES:
        side = -(-size // stride)
        mean = torch.randn(images, CHANNELS, 1, 1, generator=generator)
        maps.append((mean + torch.randn(images, CHANNELS, side, side, generator=generator)).to(dtype))
    return maps


def metas(images: int, size: int = 64) -> list[dict]:
    """Image metas of square images."""
    shape = (size, size)
    return [dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0)) for _ in range(images)]


def objects(image: int, size: int | tuple[int, int] = 64, count: int = 3) -> InstanceData:
    """``count`` boxes inside an image and their labels."""
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(100 + image)
    corner = torch.rand(count, 2, generator=generator) * 0.5
    extent = 0.2 + torch.rand(count, 2, generator=generator) * 0.3
    boxes = torch.cat([corner, corner + extent], dim=1) * torch.tensor([width, height] * 2)
    return InstanceData(bboxes=boxes, labels=torch.arange(count) % CLASSES)


def head_losses(head: nn.Module, maps: Sequence[Tensor], count: int = 3) -> dict[str, Tensor]:
    """A head's losses on maps, each loss summed over levels."""
    images = len(maps[0])
    targets = [objects(i, count=count) for i in range(images)]
    losses = head.loss_by_feat(*head(tuple(maps)), targets, metas(images))
    return {key: sum(value) if isinstance(value, list) else value for key, value in losses.items()}


def head_detections(head: nn.Module, maps: Sequence[Tensor]) -> list[InstanceData]:
    """A head's detections on maps, all scores kept."""
    cfg = ConfigDict(head.test_cfg, score_thr=0.0)
    with torch.no_grad():
        return head.predict_by_feat(*head(tuple(maps)), batch_img_metas=metas(len(maps[0])), cfg=cfg)


# -- configs and detectors ---------------------------------------------------------------------------------------


@functools.cache
def _parsed(text: str) -> Config:
    return Config.fromstring(text, '.py')


def config(text: str) -> Config:
    """A config from its text; ``_base_`` may name files of mmdet or absolute paths."""
    return copy.deepcopy(_parsed(text))


def shrink(cfg: Config, base_channels: int = 8, channels: int = 16) -> Config:
    """Makes a detector's config small in place: few channels, no download, every detection kept."""
    model = cfg.model
    backbone = model.backbone
    backbone.update(base_channels=base_channels, init_cfg=None)
    expansion = 1 if backbone.depth in (18, 34) else 4
    model.neck.update(in_channels=[base_channels * expansion * 2**i for i in range(4)], out_channels=channels)
    if 'rpn_head' in model:
        model.rpn_head.update(in_channels=channels, feat_channels=channels)
        model.roi_head.bbox_roi_extractor.out_channels = channels
        model.roi_head.bbox_head.update(in_channels=channels, fc_out_channels=16, num_classes=CLASSES)
        model.test_cfg.rcnn.score_thr = 0.0
    else:
        model.bbox_head.update(in_channels=channels, feat_channels=channels, num_classes=CLASSES)
        model.test_cfg.score_thr = 0.0
    return cfg


def detector(moe: dict | None = None, **changes) -> nn.Module:
    """A small RetinaNet (ResNet-18 with 8 base channels), initialised; with ``moe`` its head has experts."""
    cfg = config(f"_base_ = '{RETINANET}'")
    cfg.model.backbone.depth = 18
    shrink(cfg)
    cfg.model.bbox_head.stacked_convs = 1
    if moe is not None:
        cfg.model.bbox_head.update(type='MoERetinaHead', moe=moe)
    for part, values in changes.items():
        cfg.model[part].update(values)
    return initialise(build(cfg.model))


def batch(sizes: Sequence[tuple[int, int]] = ((64, 64), (64, 64)), counts: Sequence[int] | None = None) -> dict:
    """A batch as a data loader gives it: uint8 images of noise and patterns, ``counts`` objects each (default 2)."""
    inputs, samples = [], []
    counts = counts or [2] * len(sizes)
    for i, ((height, width), count) in enumerate(zip(sizes, counts, strict=True)):
        generator = torch.Generator().manual_seed(i)
        scale = torch.rand(3, 1, 1, generator=generator)
        inputs.append((torch.rand(3, height, width, generator=generator) * scale * 255).to(torch.uint8))
        sample = DetDataSample(
            metainfo=dict(img_id=i, img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
        )
        sample.gt_instances = objects(i, (height, width), count)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def losses_of(model: nn.Module, data: dict) -> dict[str, Tensor]:
    """Losses of a detector in training, each summed over levels, as its hooks leave them."""
    model.train()
    data = model.data_preprocessor(data, training=True)
    losses = model(**data, mode='loss')
    return {key: sum(value) if isinstance(value, list) else value for key, value in losses.items()}


def predictions_of(model: nn.Module, data: dict) -> list[InstanceData]:
    """Detections of a detector in evaluation."""
    model.eval()
    with torch.no_grad():
        return [sample.pred_instances for sample in model.test_step(data)]


@contextlib.contextmanager
def log_lines() -> Iterator[list[logging.LogRecord]]:
    """Collects what is written to mmengine's log meanwhile."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def assert_same_detections(ours: InstanceData, theirs: InstanceData, score: float = 1e-5, pixels: float = 1e-2) -> None:
    """Every detection of one result is in the other, apart from the last places that a rounding error may decide."""
    assert len(ours) > 0 and abs(len(ours) - len(theirs)) <= 1
    first, second = (
        torch.cat([found.bboxes / pixels, found.scores[:, None] / score, found.labels[:, None] * 9], dim=1)
        for found in (ours, theirs)
    )
    distances = (first[:, None] - second).abs().amax(2)
    cut = max(ours.scores.min(), theirs.scores.min()) + score
    for found, nearest in ((ours, distances.amin(1)), (theirs, distances.amin(0))):
        assert nearest[found.scores > cut].max() <= 1, (nearest, found.scores)
