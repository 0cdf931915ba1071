"""Whole detectors: plain mmdet RetinaNet R50-FPN and ours, their steps, and the branch that experts replace, alone."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable

import torch
from common import ROOT
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from torch import Tensor, nn

from moe_det.routing import find_routers
from moe_det.routing.experts import ExpertGroup, fold_common
from moe_det.running.launch import load_config

from .clock import Mark
from .layers import plant_routing

DENSE = 'mmdet RetinaNet'
MATCHED = 'k=2 matched'
SHARDS = ('shards E=8', 'shards E=16')
KERNELS = 'kernels E=8'
AT_DENSE_COST = (*SHARDS, KERNELS)
DETECTORS = {
    DENSE: ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', {}),
    'k=1': ('retinanet_moe_top1.py', {}),
    'k=2': ('retinanet_moe_soft.py', {}),
    MATCHED: ('retinanet_moe_soft_matched.py', {}),
    SHARDS[0]: ('retinanet_moe_shards_from_dense.py', {}),
    SHARDS[1]: ('retinanet_moe_shards_from_dense.py', {'model.bbox_head.moe.copies': 8}),
    KERNELS: ('retinanet_moe_from_dense.py', {}),
}
MANY = 'k=2, E=32'
WITH_MANY = {**DETECTORS, MANY: ('retinanet_moe_soft.py', {'model.bbox_head.moe.num_experts': 32})}
OPTIMIZERS = {'one by one': {'foreach': False}, 'foreach': {'foreach': True}, 'fused': {'fused': True}}
# changed keys for a narrow ResNet-18, which any machine runs: its times say nothing
SMALL = {
    'model.backbone.depth': 18,
    'model.backbone.base_channels': 8,
    'model.neck.in_channels': [8, 16, 32, 64],
    'model.neck.out_channels': 16,
    'model.bbox_head.in_channels': 16,
    'model.bbox_head.feat_channels': 16,
    'model.bbox_head.stacked_convs': 1,
}
HALF = {'bf16': torch.bfloat16, 'fp16': torch.float16}
LEVELS, ACTIVE = 5, 4
OBJECTS = 8  # per image; COCO has 7.3


def build(config: str, options: dict, device: str, images: int) -> nn.Module:
    """A detector of COCO's 80 classes with random weights; a choice of experts is planted, over four of them."""
    path = config if '::' in config else str(ROOT / 'configs' / config)
    cfg = load_config(path, {**options, 'model.backbone.init_cfg': None})
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # else it tells how each tensor was initialised
    model.init_weights()
    model.to(device)
    for router in find_routers(model).values():
        if router.top_k < router.num_experts:
            plant_routing(router, images, LEVELS, ACTIVE)
    return model


def with_whole_experts(model: nn.Module) -> nn.Module:
    """The model as tools load it for use: where copies share weights, a copy that has their sums."""
    if all(m.common is None for m in model.modules() if isinstance(m, ExpertGroup)):
        return model
    return fold_common(copy.deepcopy(model))


def batch(model: nn.Module, images: int, size: tuple[int, int], training: bool) -> dict:
    """Random images with eight objects each, as the preprocessor hands them to the network."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    inputs, samples = [], []
    for number in range(images):
        inputs.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator))
        corner = torch.rand(OBJECTS, 2, generator=generator) * 0.6
        extent = 0.05 + torch.rand(OBJECTS, 2, generator=generator) * 0.35
        boxes = torch.cat([corner, corner + extent], dim=1) * torch.tensor([width, height] * 2)
        sample = DetDataSample(
            metainfo={'img_id': number, 'img_shape': size, 'ori_shape': size, 'scale_factor': (1.0, 1.0)}
        )
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(OBJECTS) % 80)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return model.data_preprocessor({'inputs': inputs, 'data_samples': samples}, training)


def precision_context(precision: str, device: str) -> Callable[[], contextlib.AbstractContextManager]:
    """Autocast for ``'bf16'`` and ``'fp16'``, nothing for ``'fp32'`` and ``'tf32'``."""
    if precision not in HALF:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.partition(':')[0], dtype=HALF[precision])


def make_optimizer(model: nn.Module, **kind: bool) -> torch.optim.Optimizer:
    """mmdet's optimizer, with torch's ``foreach`` or ``fused``, at a learning rate that leaves the weights alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, lr=1e-12, momentum=0.9, weight_decay=1e-4, **kind)


def optimizer_steps(model: nn.Module) -> dict[str, Callable[[], None]]:
    """Steps of the optimizer by the way it goes through the parameters, all with the same gradients."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    return {name: make_optimizer(model, **kind).step for name, kind in OPTIMIZERS.items()}


def loss_of(model: nn.Module, data: dict) -> Tensor:
    """The objective of one batch."""
    return model.parse_losses(model(**data, mode='loss'))[0]


def train_step(model: nn.Module, data: dict, precision: str, device: str) -> Callable[[Mark], None]:
    """Forward with losses, backward, optimizer; each is a phase. In fp16 with a loss scale."""
    optimizer, context = make_optimizer(model), precision_context(precision, device)
    scaler = torch.amp.GradScaler(device.partition(':')[0], enabled=precision == 'fp16')

    def step(mark: Mark) -> None:
        with context():
            loss = loss_of(model, data)
        mark('forward')
        scaler.scale(loss).backward()
        mark('backward')
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        mark('optimizer')

    return step


def inference(model: nn.Module, data: dict, precision: str, device: str) -> Callable[[Mark], None]:
    """Network and post-processing, without loading of data."""
    context = precision_context(precision, device)

    def run(mark: Mark) -> None:
        with torch.no_grad(), context():
            model(**data, mode='predict')

    return run


def branch_alone(dense: nn.Module, data: dict, precision: str, device: str, training: bool) -> Callable[[Mark], None]:
    """What one expert of each branch costs: the plain head's two branches on all levels, on features that are given.

    In training with the backward to features and weights. The time of the rest is the dense model's minus this.
    """
    head, context = dense.bbox_head, precision_context(precision, device)
    with torch.no_grad(), context():
        maps = tuple(x.detach() for x in dense.extract_feat(data['inputs']))
    if not training:

        def infer(mark: Mark) -> None:
            with torch.no_grad(), context():
                head(maps)

        return infer
    maps = tuple(x.requires_grad_() for x in maps)

    def train(mark: Mark) -> None:
        with context():
            outputs = [y for branch in head(maps) for y in branch]
        torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
        for tensor in [*maps, *head.parameters()]:
            tensor.grad = None

    return train
