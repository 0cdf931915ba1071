"""Losses of single images from a batch's outputs, against training on the image alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import as_truth, batch, build, config, initialise, objects, shrink, spread_weights

from moe_det.probing.losses import cannot_compute_losses, image_losses
from moe_det.probing.places import Truth
from moe_det.probing.provenance import ProvenanceRecorder

SIZES = [(160, 256), (256, 160), (192, 192)]
COUNTS = [3, 1, 2]
HEADS = [
    'retinanet/retinanet_r50_fpn_1x_coco.py',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'atss/atss_r50_fpn_1x_coco.py',
    'gfl/gfl_r50_fpn_1x_coco.py',
]


@pytest.mark.parametrize('base', HEADS)
@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_the_loss_of_an_image_is_that_of_the_image_alone(base, scale):
    cfg = shrink(config(f"_base_ = 'mmdet::{base}'"), channels=32)
    model = spread_weights(initialise(build(cfg.model))).eval()
    assert cannot_compute_losses(model.bbox_head) is None
    given = batch(SIZES, COUNTS)
    truths = []
    for image, (size, count) in enumerate(zip(SIZES, COUNTS, strict=True)):
        given['data_samples'][image].set_metainfo(dict(scale_factor=(scale, scale)))
        truths.append(as_truth(objects(image, size, count), scale=scale))
    data = model.data_preprocessor(given, False)
    samples = data['data_samples']
    with torch.no_grad(), ProvenanceRecorder(model.bbox_head) as recorder:
        model.predict(data['inputs'], [sample.clone() for sample in samples])
        found = image_losses(model.bbox_head, recorder.outputs, truths, [sample.metainfo for sample in samples])
        for image, sample in enumerate(samples):
            losses = model.loss(data['inputs'][image : image + 1], [sample])
            parts = [part for value in losses.values() for part in (value if isinstance(value, list) else [value])]
            assert found[image] == pytest.approx(float(sum(part.sum() for part in parts)), rel=1e-3)


def test_an_image_without_objects_has_a_loss():
    cfg = shrink(config(f"_base_ = 'mmdet::{HEADS[0]}'"))
    model = initialise(build(cfg.model)).eval()
    data = model.data_preprocessor(batch([(64, 64)]), False)
    nothing = Truth(np.zeros(0, dtype=np.int64), np.zeros((0, 4)), np.zeros(0, dtype=np.int64))
    with torch.no_grad():
        outputs = model.bbox_head(model.extract_feat(data['inputs']))
    (loss,) = image_losses(model.bbox_head, outputs, [nothing], [data['data_samples'][0].metainfo])
    assert 0 < loss < np.inf


def test_heads_without_a_loss():
    cfg = shrink(config(f"_base_ = 'mmdet::{HEADS[0]}'"))
    cfg.model.train_cfg = None
    assert 'no loss' in cannot_compute_losses(build(cfg.model).bbox_head)
    cfg = shrink(config(f"_base_ = 'mmdet::{HEADS[1]}'"), channels=32)
    cfg.model.bbox_head.norm_on_bbox = True
    assert 'norm_on_bbox' in cannot_compute_losses(build(cfg.model).bbox_head)
    cfg = shrink(config("_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'"))
    assert 'two-stage' in cannot_compute_losses(getattr(build(cfg.model), 'bbox_head', None))
