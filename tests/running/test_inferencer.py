"""mmdet's DetInferencer, and with it mmdet's image_demo.py, runs our checkpoints."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from small_files import model_of, write_checkpoint, write_config

from moe_det.converters.densify import densify

MOE = dict(num_experts=3, top_k=2, constraint=dict(type='RelativeImportanceConstraint'))


@pytest.fixture
def picture(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'picture.png'), image)
    return tmp_path / 'picture.png'


def make_inferable(config) -> None:
    """Images of COCO's size would take long."""
    text = config.read_text().replace('1333', '96').replace('800', '64')
    config.write_text(text)


def test_config_and_checkpoint(tmp_path, picture, weights_only_enforced):
    config = write_config(tmp_path / 'moe.py', MOE)
    make_inferable(config)
    checkpoint = write_checkpoint(config, tmp_path / 'moe.pth')
    inferencer = DetInferencer(model=str(config), weights=str(checkpoint), device='cpu', show_progress=False)
    # the arguments that image_demo.py gives
    found = inferencer(
        inputs=str(picture),
        out_dir=str(tmp_path / 'out'),
        no_save_vis=False,
        no_save_pred=False,
        show=False,
        pred_score_thr=0.3,
        batch_size=1,
        print_result=False,
    )['predictions'][0]
    assert weights_only_enforced
    assert (tmp_path / 'out' / 'vis' / 'picture.png').is_file()
    assert json.loads((tmp_path / 'out' / 'preds' / 'picture.json').read_text())['labels'] == found['labels']

    model = model_of(config, checkpoint)
    with DefaultScope.overwrite_default_scope('mmdet'):
        pipeline = Compose(inferencer.cfg.test_dataloader.dataset.pipeline)
    sample = pipeline(dict(img_path=str(picture), img_id=0))
    with torch.no_grad():
        (result,) = model.test_step(dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']]))
    assert len(found['scores']) == len(result.pred_instances) > 0
    np.testing.assert_allclose(found['scores'], result.pred_instances.scores.numpy(), atol=1e-6)
    np.testing.assert_allclose(found['bboxes'], result.pred_instances.bboxes.numpy(), atol=1e-3)


def test_a_converted_checkpoint_brings_its_own_config(tmp_path, picture, weights_only_enforced):
    config = write_config(tmp_path / 'moe.py', MOE)
    make_inferable(config)
    checkpoint = write_checkpoint(config, tmp_path / 'moe.pth')
    densify(str(config), str(checkpoint), str(tmp_path / 'dense.pth'), expert=['0'])
    inferencer = DetInferencer(weights=str(tmp_path / 'dense.pth'), device='cpu', show_progress=False)
    assert type(inferencer.model.bbox_head).__name__ == 'RetinaHead'
    assert inferencer.model.dataset_meta['classes'] == ('a', 'b', 'c')
    assert len(inferencer(inputs=str(picture))['predictions'][0]['scores']) > 0
