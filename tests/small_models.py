"""Small heads, detectors of many families, configs and batches that several tests build."""

from __future__ import annotations

import moe_det.registry  # noqa: F401 - first: supplies the operators that mmdet's import needs

# isort: split
import contextlib
import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moe_det.probing.places import Truth
from moe_det.routing.records import RoutingRecord, RoutingRecorder

torch.set_num_threads(1)  # these models are so small that waking a second thread costs more than it computes

REPOSITORY = Path(__file__).resolve().parents[1]
CLASSES = 3
CHANNELS = 8
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


def multiply_adds(function: Callable, *inputs: object) -> int:
    """Multiply-adds of one call, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*inputs)
    return counter.get_total_flops() // 2


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


def head_outputs(head: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """Class logits of all levels, then box deltas."""
    return [y for branch in head(tuple(maps)) for y in branch]


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


def as_truth(found: InstanceData, first: int = 0, scale: float = 1.0) -> Truth:
    """Objects as ground truths numbered from ``first``, in pixels of the image before ``scale`` resized it."""
    boxes = found.bboxes.double().numpy() / scale
    boxes[:, 2:] -= boxes[:, :2]
    return Truth(np.arange(len(boxes)) + first, boxes, found.labels.numpy())


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


@functools.cache
def _read(path: Path) -> Config:
    return Config.fromfile(path)


def config_file(path: Path) -> Config:
    """A config from its file."""
    return copy.deepcopy(_read(path))


def _leaves(value: object, path: str = '') -> dict[str, object]:
    """Dotted path of every leaf -> its value."""
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _leaves(item, f'{path}.{key}'.lstrip('.')).items()}
    return {path: value}


def config_differences(first: Config, second: Config) -> set[str]:
    """Paths at which two configs differ."""
    a, b = _leaves(first.to_dict()), _leaves(second.to_dict())
    return {path for path in a.keys() | b.keys() if path not in a or path not in b or a[path] != b[path]}


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
    constraints = model.get('bbox_head', {}).get('moe', {}).get('constraint') or []
    for constraint in constraints if isinstance(constraints, list) else [constraints]:
        if constraint.type == 'ClusterMask':  # the channels of the backbone's last map
            constraint.channels = base_channels * expansion * 8
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


def blocks_after(*stages: int, **moe) -> dict:
    """A ResNet's plugin: an MoEBlock behind the last convolution of each block of these stages, from 1 to 4."""
    where = tuple(stage in stages for stage in range(1, 5))
    return dict(cfg=dict(type='MoEBlock', **moe), stages=where, position='after_conv3')


def with_experts(cfg: Config, experts: object) -> dict:
    """The config of a detector with experts in its modules, as an overlay makes it."""
    return {**cfg, 'type': 'WithExperts', 'detector': cfg['type'], 'experts': experts}


def losses_of(model: nn.Module, data: dict) -> dict[str, Tensor]:
    """Losses of a detector in training, each summed over levels, as its hooks leave them."""
    model.train()
    data = model.data_preprocessor(data, training=True)
    losses = model(**data, mode='loss')
    return {key: sum(value) if isinstance(value, list) else value for key, value in losses.items()}


def records_of(model: nn.Module, image_ids: Sequence[int], call: Callable, *inputs: object) -> list[RoutingRecord]:
    """What the routers of a model decided during one call about these images."""
    with RoutingRecorder(model) as recorder:
        recorder.start_batch(image_ids)
        call(*inputs)
    return recorder.records


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


# -- mmdet's own configs of many families, at a size that builds and runs in a second -------------------------------

CHANNEL_KEYS = {
    'embed_dims',
    'feat_channels',
    'feedforward_channels',
    'fc_out_channels',
    'conv_out_channels',
    'in_channels',
    'out_channels',
    'num_feats',
    'point_feat_channels',
    'head_feat_channel',
    'feat_channel',
    'mid_channels',
}
NUMBERS = {'num_queries': 20, 'num_classes': CLASSES, 'num_matching_queries': 20, 'samples_per_gpu': 2}
FEWER_LAYERS = {'encoder', 'decoder'}
FACTOR = 8  # of channels
TINY = {'backbone.widen_factor': 0.375 / FACTOR}
OF_DETR = {'bbox_head.embed_dims': 32}
# what the rules below do not reach, by folder or config of mmdet
CHANGES = {
    'detr': OF_DETR,
    'dab_detr': OF_DETR,
    'deformable_detr': OF_DETR,
    'rtmdet': TINY,
    'yolox': {**TINY, 'data_preprocessor.batch_augments': None},
    'centernet/centernet_r18_8xb16-crop512-140e_coco.py': {'neck.num_deconv_filters': (32, 16, 8)},
    'regnet': {'neck.in_channels': [64, 128, 288, 672]},
    'pvt/retinanet_pvt-t_fpn_1x_coco.py': {'neck.in_channels': [64, 128, 320, 512]},
}
WHOLE_WIDTH = ('conditional_detr', 'dino')  # a number of channels is written in their code (DINO's in mmdet 3.3)


def family(name: str) -> Config:
    """A config of mmdet with an eighth of its channels, three classes and no weights to fetch.

    Args:
        name: path below mmdet's configs.
    """
    cfg = config(f"_base_ = 'mmdet::{name}'")
    model = cfg.model
    folder = name.partition('/')[0]
    factor = 1 if folder in WHOLE_WIDTH else FACTOR
    _shrink(model, factor)
    backbone = model.backbone
    if 'ResNe' in backbone.type:
        backbone.base_channels = 64 // factor
    for key in ('init_cfg', 'pretrained'):
        backbone.pop(key, None)
    for part in (model.get('test_cfg') or {}, (model.get('test_cfg') or {}).get('rcnn') or {}):
        if part.get('score_thr'):
            part.score_thr = 0.0
    if 'decoder' in model:
        model.test_cfg.max_per_img = 10
    changes = {**CHANGES.get(folder, {}), **CHANGES.get(name, {})}
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    return cfg


def batch_for(model: nn.Module) -> dict:
    """Two images with boxes, and with masks for models that predict them."""
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD asks
    data = batch()
    for sample in data['data_samples']:
        sample.set_metainfo({'border': (0, sample.img_shape[0], 0, sample.img_shape[1])})  # CenterNet's pipeline
    if getattr(model, 'with_mask', False):
        for sample in data['data_samples']:
            found = sample.gt_instances
            height, width = sample.img_shape
            masks = np.zeros((len(found), height, width), dtype=np.uint8)
            for mask, box in zip(masks, found.bboxes.long().tolist(), strict=True):
                mask[box[1] : box[3], box[0] : box[2]] = 1
            found.masks = BitmapMasks(masks, height, width)
    return data


def _shrink(node: object, factor: int, path: str = '') -> None:
    if isinstance(node, (list, tuple)):
        for item in node:
            _shrink(item, factor, path)
    if not isinstance(node, dict):
        return
    node.pop('pretrained', None)
    if 'checkpoint' in (node.get('init_cfg') or {}):
        node['init_cfg'] = None
    for key, value in node.items():
        if key in CHANNEL_KEYS:
            node[key] = _divided(value, factor)
        elif key in NUMBERS:
            node[key] = NUMBERS[key]
        elif key == 'num_layers' and path.rpartition('.')[2] in FEWER_LAYERS:
            node[key] = 2
        elif key == 'num_groups' and isinstance(value, int):
            node[key] = 4
        else:
            _shrink(value, factor, f'{path}.{key}')


def _divided(value: object, factor: int) -> object:
    if isinstance(value, Sequence):
        return [_divided(item, factor) for item in value]
    return max(4, value // factor) if isinstance(value, int) and value > 4 else value


# -- a DETR whose boxes are known, and whose gate is planted to sort its queries by the size of their boxes -----------

LAYER = 'decoder.layers.1.ffn'  # the last
SIDE_LOGIT = -1.5  # of the side of a box at the gate's limit, a part of the image


def detr_config(top_k: int = 1) -> Config:
    """DETR of an eighth of its channels with two experts for the queries of its last decoder layer."""
    cfg = family('detr/detr_r50_8xb2-150e_coco.py')
    experts = [{'modules': LAYER, 'type': 'MoEFFN', 'num_experts': 2, 'top_k': top_k}]
    cfg.model = with_experts(cfg.model, experts)
    return cfg


def planted_detr(cfg: Config) -> nn.Module:
    """A DETR with random weights, but for what tells size.

    After the last cross-attention the layers keep a query as it is: experts give 0, norms scale nothing. Along one axis
    their content is the logit of the box's width and height, and along the same axis the gate sends small boxes to
    expert 0 and large ones to expert 1. Other axes give the place.
    """
    torch.manual_seed(0)
    model = spread_weights(initialise(build(cfg.model))).eval()
    head, layer = model.bbox_head, model.decoder.layers[-1]
    with torch.no_grad():
        for norm in [*layer.norms, model.decoder.post_norm]:
            norm.weight.fill_(1)
            norm.bias.zero_()
        for expert in layer.ffn.expert_group.experts:
            expert.layers[1].weight.zero_()
            expert.layers[1].bias.zero_()
        axes, offsets = _axes_of_queries(model, layer.ffn)
        gate = layer.ffn.router.gate.fc
        gate.weight.copy_(torch.stack([-axes[0], axes[0]]))
        gate.bias.copy_(torch.stack([-offsets[0], offsets[0]]))
        first, second = head.reg_ffn.layers[0][0], head.reg_ffn.layers[1]
        for linear in (first, second, head.fc_reg):
            linear.weight.zero_()
            linear.bias.zero_()
        # positive and negative part, for a ReLU follows
        first.weight[:3], first.weight[3:6] = axes, -axes
        first.bias[:3], first.bias[3:6] = offsets, -offsets
        second.weight[:6, :6] = torch.eye(6)
        # cx, cy, width, height: near the middle, so that the border cuts little off
        for side, (axis, scale) in enumerate(((1, 0.3), (2, 0.3), (0, 1.0), (0, 1.0))):
            head.fc_reg.weight[side, axis], head.fc_reg.weight[side, axis + 3] = scale, -scale
        head.fc_reg.bias[2:] = SIDE_LOGIT
    return model


def _axes_of_queries(model: nn.Module, ffn: nn.Module) -> tuple[Tensor, Tensor]:
    """(3, C) and (3,) that make three numbers of mean 0 and variance 1 of a query's content.

    The first is one of small variance before, which gates with random weights hardly see.
    """
    seen = []
    handle = ffn.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].flatten(0, 1)))
    predictions_of(model, batch([(64, 64)] * 8))
    handle.remove()
    content = torch.cat(seen)
    axes = torch.linalg.svd(content - content.mean(0), full_matrices=False).Vh[[4, 0, 1]]
    along = content @ axes.T
    axes = axes / along.std(0)[:, None]
    return axes, -(content @ axes.T).mean(0)
