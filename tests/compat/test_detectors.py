"""Stock detectors of mmdet, small and with random weights, train and predict on the operators in use."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

import moe_det  # noqa: F401

CLASSES = 3


def small_detector(config: str) -> torch.nn.Module:
    """Builds mmdet's own config with a ResNet-18 and 32 channels."""
    model = Config.fromstring(f"_base_ = 'mmdet::{config}'", '.py').model
    model.backbone.update(depth=18, init_cfg=None)
    model.neck.update(in_channels=[64, 128, 256, 512], out_channels=32)
    if 'rpn_head' in model:
        model.rpn_head.update(in_channels=32, feat_channels=32)
        model.roi_head.bbox_roi_extractor.out_channels = 32
        model.roi_head.bbox_head.update(in_channels=32, fc_out_channels=64, num_classes=CLASSES)
        model.test_cfg.rcnn.score_thr = 0.0
    else:
        model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=CLASSES)
        model.test_cfg.score_thr = 0.0
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(model)
    detector.init_weights()
    return detector


def batch() -> dict:
    """Two images of noise with one and two objects."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for boxes, labels in (([[8.0, 8, 60, 70]], [0]), ([[30.0, 20, 100, 90], [5, 60, 40, 120]], [1, 2])):
        sample = DetDataSample()
        sample.set_metainfo(
            dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (128, 128))
            | dict(scale_factor=(1.0, 1.0))
        )
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes), labels=torch.tensor(labels))
        samples.append(sample)
    return dict(inputs=torch.randn(2, 3, 128, 128, generator=generator), data_samples=samples)


@pytest.mark.parametrize(
    'config, losses',
    [
        ('retinanet/retinanet_r50_fpn_1x_coco.py', {'loss_cls', 'loss_bbox'}),
        ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox'}),
    ],
)
def test_stock_detector_trains_and_predicts(config, losses):
    torch.manual_seed(0)
    detector = small_detector(config)
    detector.train()
    found = detector(**batch(), mode='loss')
    assert losses <= set(found)
    assert torch.isfinite(detector.parse_losses(found)[0])
    # the last loss of the two-stage detector reaches the backbone through RoIAlign only
    detector.parse_losses(dict(loss_cls=found['loss_cls']))[0].backward()
    gradient = detector.backbone.layer4[0].downsample[0].weight.grad
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0

    detector.eval()
    with torch.no_grad():
        predictions = detector(**batch(), mode='predict')
    for sample in predictions:
        instances = sample.pred_instances
        assert 0 < len(instances) <= 100
        assert instances.bboxes.min() >= 0 and instances.bboxes.max() <= 128
        assert (instances.scores[:-1] >= instances.scores[1:]).all()
        assert instances.labels.max() < CLASSES
