"""mmdet's own configs, unchanged, get experts from a few lines of a user's config."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path

import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.config import Config
from small_models import batch, build, initialise, losses_of, mmdet_scope, predictions_of, shrink

from moe_det.routing import RoutingRecorder, find_routers

HEADER = """
custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)
custom_hooks = [dict(type='MoEHook')]
"""
CONVS = """
model = dict(bbox_head=dict(conv_cfg=dict(
    type='MoEConv2d', num_experts=3, top_k=2, num_levels=5, balance_over='level',
    constraint=dict(type='KLConstraint', weight=0.25))))
"""
BLOCKS = """
model = dict(backbone=dict(plugins=[dict(
    cfg=dict(type='MoEBlock', num_experts=3, top_k=2, constraint=dict(type='KLConstraint', weight=0.25)),
    stages=(False, False, False, True), position='after_conv3')]))
"""


@dataclasses.dataclass(frozen=True)
class Overlay:
    """A user's lines on top of one of mmdet's configs.

    Attributes:
        base: mmdet's config.
        text: the lines.
        layers: number of MoE layers that they make.
        calls: calls of each layer in one forward; a layer of a head is called once per level.
        own: whether the head adds the losses itself, under its own names.
    """

    base: str
    text: str
    layers: int
    calls: int
    own: bool = False


OVERLAYS = {
    'retinanet head': Overlay(
        'retinanet/retinanet_r50_fpn_1x_coco.py',
        "model = dict(bbox_head=dict(type='MoERetinaHead', moe=dict(\n"
        "    num_experts=3, top_k=2, constraint=dict(type='KLConstraint', weight=0.25))))",
        layers=2,
        calls=1,
        own=True,
    ),
    'fcos convolutions': Overlay('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', CONVS, layers=8, calls=5),
    'atss convolutions': Overlay('atss/atss_r50_fpn_1x_coco.py', CONVS, layers=8, calls=5),
    'atss blocks': Overlay('atss/atss_r50_fpn_1x_coco.py', BLOCKS, layers=3, calls=1),
    'faster r-cnn blocks': Overlay('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', BLOCKS, layers=3, calls=1),
    'faster r-cnn stages': Overlay(
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        "model = dict(backbone=dict(type='MoEResNet', moe=dict(\n"
        "    stages=(3, 4), num_experts=3, top_k=2, constraint=dict(type='KLConstraint', weight=0.25))))",
        layers=2,
        calls=1,
    ),
}


@pytest.fixture(scope='module', params=OVERLAYS)
def overlaid(request, tmp_path_factory):
    """The overlay, and its detector made small, with the config's hook attached."""
    overlay = OVERLAYS[request.param]
    file: Path = tmp_path_factory.mktemp('overlay') / 'mine.py'
    file.write_text(f"_base_ = 'mmdet::{overlay.base}'\n{HEADER}{overlay.text}\n")
    cfg = shrink(Config.fromfile(file), channels=32)  # the heads normalise 32 groups of channels
    torch.manual_seed(0)
    model = initialise(build(cfg.model))
    for name, parameter in model.backbone.named_parameters():
        if name.endswith('bn3.weight'):
            torch.nn.init.ones_(parameter)  # zero in a backbone that was not pretrained
    with mmdet_scope():
        for hook in cfg.custom_hooks:
            HOOKS.build(hook).before_run(types.SimpleNamespace(model=model))
    return overlay, model


def test_auxiliary_loss_is_returned_and_reaches_every_gate(overlaid):
    overlay, model = overlaid
    routers = find_routers(model)
    assert len(routers) == overlay.layers
    model.zero_grad()
    losses = losses_of(model, batch())
    names = {'loss_moe_kl_cls', 'loss_moe_kl_reg'} if overlay.own else {'loss_moe_kl'}
    assert {key for key in losses if 'moe' in key} == names
    total, logged = model.parse_losses(losses)
    assert torch.isfinite(total)
    parts = [value.item() for key, value in logged.items() if 'loss' in key and key != 'loss']
    assert logged['loss'].item() == pytest.approx(sum(parts), rel=1e-5)
    sum(losses[name] for name in names).backward(retain_graph=True)
    for path, router in routers.items():
        assert router.gate.fc.weight.grad.abs().max() > 0, path
    model.zero_grad()
    total.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and ('expert' in key or 'router' in key):
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


def test_detections_and_rows(overlaid):
    overlay, model = overlaid
    with RoutingRecorder(model) as recorder:
        recorder.start_batch([7, 8])
        predictions = predictions_of(model, batch())
    assert len(predictions) == 2
    for found in predictions:
        assert len(found) > 0
        assert torch.isfinite(found.bboxes).all() and torch.isfinite(found.scores).all()
    for path in find_routers(model):
        records = [record for record in recorder.records if record.layer == path]
        assert len(records) == overlay.calls, path
        levels = torch.cat([record.levels for record in records]).tolist()
        images = torch.cat([record.image_ids for record in records]).tolist()
        expected = 5 if overlay.own or overlay.calls == 5 else 1
        assert sorted(zip(images, levels, strict=True)) == [(i, level) for i in (7, 8) for level in range(expected)]


def test_rows_of_one_step_do_not_leak_into_the_next(overlaid, monkeypatch):
    _, model = overlaid
    for router in find_routers(model).values():
        monkeypatch.setitem(router._modules, 'noise', None)
    values = []
    for _ in range(2):
        torch.manual_seed(1)  # Faster R-CNN draws samples
        values.append({key: value.item() for key, value in losses_of(model, batch()).items()})
    assert values[0] == pytest.approx(values[1], rel=1e-6)
