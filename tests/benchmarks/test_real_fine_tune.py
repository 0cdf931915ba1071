"""configs/fine_tune: what a user changes in five lines reaches every place, and the configs train."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint
from small_models import (
    REPOSITORY,
    assert_same_detections,
    batch,
    build,
    initialise,
    mmdet_scope,
    predictions_of,
    shrink,
    spread_weights,
)

from moe_det.routing import find_routers

FOLDER = REPOSITORY / 'configs' / 'fine_tune'
MOE, DENSE, CONTROL = 'retinanet_r18_moe.py', 'retinanet_r18_dense.py', 'retinanet_r18_control.py'
LINES = {
    'data_root': "'data/pets/'",
    'classes': "('dog', 'cat', 'small rabbit')",
    'size': '512',
    'channels': '32',
    'epochs': '4',
}


def users_copy(folder: Path, more: str = '') -> tuple[Config, Config, Config]:
    """The files copied, five lines of one changed and more added; with experts, dense, and the control."""
    text = (FOLDER / MOE).read_text(encoding='utf-8')
    for key, value in LINES.items():
        text, changed = re.subn(rf'^{key} = .*$', f'{key} = {value}', text, flags=re.MULTILINE)
        assert changed == 1, key
    (folder / MOE).write_text(text + more, encoding='utf-8')
    for name in (DENSE, CONTROL):
        shutil.copy(FOLDER / name, folder)
    return tuple(Config.fromfile(folder / name) for name in (MOE, DENSE, CONTROL))


def test_five_lines_reach_every_place(tmp_path):
    for cfg in users_copy(tmp_path):
        classes = ('dog', 'cat', 'small rabbit')
        head, neck = cfg.model.bbox_head, cfg.model.neck
        assert head.num_classes == 3 and head.in_channels == head.feat_channels == neck.out_channels == 32
        for split in ('train', 'val', 'test'):
            dataset = cfg[f'{split}_dataloader'].dataset
            assert tuple(dataset.metainfo.classes) == classes and dataset.data_root == 'data/pets/'
            assert [step.scale for step in dataset.pipeline if step.type == 'Resize'] == [(512, 512)]
        assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file
        assert cfg.val_evaluator.ann_file == 'data/pets/annotations/instances_val2017.json'
        assert cfg.param_scheduler[1].end == cfg.train_cfg.max_epochs


def test_other_layouts_and_logs_need_the_lines_of_the_documentation(tmp_path):
    text = (REPOSITORY / 'docs' / 'your_own_data.md').read_text(encoding='utf-8')
    snippets = re.findall(r'```python\n(.*?)```', text, flags=re.DOTALL)
    for cfg in users_copy(tmp_path, ''.join(snippets)):
        assert [backend.type for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']
        for split, part in (('train', 'train'), ('val', 'valid'), ('test', 'valid')):
            dataset = cfg[f'{split}_dataloader'].dataset
            assert (dataset.ann_file, dataset.data_prefix.img) == (f'{part}/_annotations.coco.json', f'{part}/')
            assert tuple(dataset.metainfo.classes) == ('dog', 'cat', 'small rabbit')
            assert len(dataset.pipeline) > 3 and dataset.data_root == 'data/pets/'
        assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == 'data/pets/valid/_annotations.coco.json'


def test_the_experts_start_from_the_end_of_the_dense_run(tmp_path):
    moe, dense, control = users_copy(tmp_path)
    assert (moe.train_cfg.max_epochs, dense.train_cfg.max_epochs) == (4, 12)
    assert moe.load_from == f'work_dirs/{Path(DENSE).stem}/epoch_12.pth' and dense.load_from is None
    assert moe.optim_wrapper.optimizer.lr == dense.optim_wrapper.optimizer.lr / 2
    assert moe.model.backbone == dense.model.backbone and moe.model.neck == dense.model.neck
    assert moe.model.backbone.init_cfg.checkpoint == 'torchvision://resnet18'
    assert (dense.model.bbox_head.type, moe.model.bbox_head.type) == ('RetinaHead', 'MoERetinaHead')
    assert control.model == dense.model and control.custom_hooks == dense.custom_hooks
    for key in ('load_from', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'train_dataloader', 'val_dataloader'):
        assert control[key] == moe[key], key


@pytest.mark.parametrize('name', [MOE, DENSE, CONTROL])
def test_config_trains_a_step(name):
    cfg = shrink(Config.fromfile(FOLDER / name))
    torch.manual_seed(0)
    model = initialise(build(cfg.model))
    spread_weights(model.bbox_head)
    assert bool(find_routers(model)) == (name == MOE)
    with mmdet_scope():
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {group['lr'] for group in optim_wrapper.optimizer.param_groups}
    assert rates == {cfg.optim_wrapper.optimizer.lr, 0.3 * cfg.optim_wrapper.optimizer.lr}
    before = {key: value.clone() for key, value in model.named_parameters()}
    model.train()
    model.train_step(batch(), optim_wrapper)
    moved = {key.split('.')[0] for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {'backbone', 'neck', 'bbox_head'}


def test_the_mixture_predicts_what_the_dense_detector_predicts(tmp_path):
    torch.manual_seed(0)
    dense = initialise(build(shrink(Config.fromfile(FOLDER / DENSE)).model))
    spread_weights(dense.bbox_head)
    torch.save(dict(state_dict=dense.state_dict()), tmp_path / 'dense.pth')
    cfg = shrink(Config.fromfile(FOLDER / MOE))
    cfg.model.bbox_head.moe.copy_noise = 0
    model = initialise(build(cfg.model))
    load_checkpoint(model, str(tmp_path / 'dense.pth'), map_location='cpu')
    for ours, theirs in zip(predictions_of(model, batch()), predictions_of(dense, batch()), strict=True):
        assert_same_detections(ours, theirs)
