"""tools/analysis_tools/size_specialization.py on a few images of shapes, in this process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from unittest import mock

import torch
from small_files import checkpoint, plant_varied
from small_models import REPOSITORY, RETINANET, spread_weights
from torch import nn

from moe_det.datasets.shapes import ShapesSettings, make_shapes

TOOL = REPOSITORY / 'tools' / 'analysis_tools' / 'size_specialization.py'
FEW = ['--permutations', '100', '--bootstrap', '100', '--swaps', '1', '--resamples', '50', '--area-ranges', '16', '48']
CLASSES = ('circle', 'square', 'triangle', 'star', 'ring', 'cross')
CONFIG = f"""
_base_ = '{RETINANET}'
custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)
classes = dict(classes={CLASSES!r})
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
test_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(
    pipeline=pipeline, metainfo=classes, ann_file='annotations/instances_val2017.json',
    data_prefix=dict(img='val2017/')))
test_evaluator = dict(ann_file='data/coco/annotations/instances_val2017.json')
model = dict(
    backbone=dict(depth=18, base_channels=8, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(
        type='MoERetinaHead', num_classes=6, in_channels=16, feat_channels=16, stacked_convs=1,
        moe=dict(num_experts=3, top_k=2, constraint=dict(type='KLConstraint'))),
    # every box is kept, so that some fit an object though nothing is learnt
    test_cfg=dict(score_thr=0.0, nms_pre=300, max_per_img=100, nms=dict(type='nms', iou_threshold=0.9)))
"""


def plant(model: nn.Module) -> None:
    """Scores differ from place to place, boxes are the anchors, and the gates choose by what they see."""
    spread_weights(model.bbox_head.branch_experts)
    for expert in model.bbox_head.branch_experts['reg'].experts:
        nn.init.zeros_(expert.predictor.weight)
        nn.init.zeros_(expert.predictor.bias)
    plant_varied(model)


def analyse(folder: Path, device: str) -> dict:
    """Makes data, config and checkpoint and runs the tool; returns the numbers of its report."""
    folder.mkdir(parents=True)
    make_shapes(folder / 'data', ShapesSettings(train=1, val=4, size=96, seed=3))
    config = folder / 'config.py'
    config.write_text(CONFIG)
    weights = checkpoint(config, folder / 'weights.pth', plant)
    saved = torch.load(weights)
    saved['meta']['dataset_meta'] = dict(classes=CLASSES)
    torch.save(saved, weights)
    spec = importlib.util.spec_from_file_location('size_tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    places = ['--data-root', str(folder / 'data'), '--out-dir', str(folder / 'report')]
    with mock.patch('moe_det.studies.size_specialization.write_report'):  # a page of these numbers, slow to draw
        status = tool.main([str(config), str(weights), *places, '--device', device, '--no-figures', *FEW])
    assert status == 0, status
    return json.loads((folder / 'report' / 'size_specialization.json').read_text())
