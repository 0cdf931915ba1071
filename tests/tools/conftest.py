"""A detection data set of four 64-pixel images per split, and a config that trains on it in seconds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
CLASSES = ('disc', 'box')

CONFIG = """
data_root = 'data/tiny/'
meta = dict(classes=('disc', 'box'))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset', data_root=data_root, metainfo=meta, ann_file='annotations/train.json',
        data_prefix=dict(img='train/'), pipeline=pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset', data_root=data_root, metainfo=meta, ann_file='annotations/val.json',
        data_prefix=dict(img='val/'), test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'annotations/val.json', metric='bbox')
test_evaluator = val_evaluator
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[128.0] * 3, std=[64.0] * 3, bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN'), style='pytorch'),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, start_level=1,
              add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=2, in_channels=16, stacked_convs=1, feat_channels=16,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                              ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=200, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5),
                  max_per_img=20))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
default_scope = 'mmdet'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=1),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'))
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
"""


def write_tiny_coco(folder: Path, splits: tuple[str, ...] = ('train', 'val')) -> Path:
    """Writes four 64-pixel images with one 24-pixel disc or box each, per split, in COCO's layout."""
    random = np.random.default_rng(0)
    (folder / 'annotations').mkdir(parents=True)
    for split in splits:
        (folder / split).mkdir()
        images, annotations = [], []
        for number in range(1, 5):
            image = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            x, y, label = 8 * number, 36 - 8 * number, number % 2
            if label:
                image[y : y + 24, x : x + 24] = (40, 220, 40)
            else:
                cv2.circle(image, (x + 12, y + 12), 12, (220, 40, 40), -1)
            cv2.imwrite(str(folder / split / f'{number}.png'), image)
            images.append(dict(id=number, file_name=f'{number}.png', width=64, height=64))
            box = dict(bbox=[x, y, 24, 24], area=576, iscrowd=0)
            annotations.append(dict(id=number, image_id=number, category_id=label + 1, **box))
        categories = [dict(id=index + 1, name=name) for index, name in enumerate(CLASSES)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (folder / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    return folder


def load_tool(name: str):
    """Imports a script of tools/ by its path."""
    path = TOOLS / name
    spec = importlib.util.spec_from_file_location(f'tools_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def tiny_coco(tmp_path_factory) -> Path:
    """The data set's folder; tests leave it as it is."""
    return write_tiny_coco(tmp_path_factory.mktemp('tiny_coco') / 'tiny')


@pytest.fixture
def tiny_config(tmp_path) -> Path:
    """A config whose data folder, data/tiny, does not exist: the data comes with --data-root."""
    path = tmp_path / 'tiny_retinanet.py'
    path.write_text(CONFIG)
    return path


@pytest.fixture
def tool():
    """Imports a script: ``tool('train.py').main([...])`` returns its exit status."""
    return load_tool


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch) -> None:
    """The test's own folder is the current one."""
    monkeypatch.chdir(tmp_path)
