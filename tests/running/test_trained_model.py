"""Loading a trained model and the test images, against mmengine's own Runner."""

from __future__ import annotations

import fractions
import json
import shutil
from pathlib import Path

import pytest
import torch
from small_files import TINY_CONFIG, checkpoint, moe_config, write_tiny_coco

from moe_det.analysis.ground_truth import GroundTruth
from moe_det.dataset_check.dataset_paths import annotation_file
from moe_det.errors import CheckpointError, DataError, MoEConfigError
from moe_det.running.launch import load_config
from moe_det.running.trained_model import analysis_device, load_trained_model, test_batches


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Tiny data, a dense and a MoE config, and a checkpoint of each."""
    folder = tmp_path_factory.mktemp('trained')
    write_tiny_coco(folder / 'data')
    (folder / 'dense.py').write_text(TINY_CONFIG)
    checkpoint(folder / 'dense.py', folder / 'dense.pth')
    checkpoint(moe_config(folder / 'dense.py'), folder / 'moe.pth')
    return folder


@pytest.fixture
def cfg(folder):
    return load_config(folder / 'moe.py', data_root=folder / 'data')


def test_weights_are_the_checkpoints_and_the_model_is_ready(folder, cfg):
    model = load_trained_model(cfg, str(folder / 'moe.pth'), 'cpu')
    stored = torch.load(folder / 'moe.pth', weights_only=True)['state_dict']
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    assert not model.training and model.dataset_meta['classes'] == ('disc', 'box')
    seen = []
    for image_ids, batch in test_batches(cfg):
        results = model.test_step(batch)
        assert [sample.img_id for sample in results] == image_ids
        seen += image_ids
    assert seen == [1, 2, 3, 4]


def test_prefixes_of_data_parallel_training_are_taken_off(folder, cfg, tmp_path):
    state = torch.load(folder / 'moe.pth', weights_only=True)['state_dict']
    torch.save({f'module.{key}': value for key, value in state.items()}, tmp_path / 'wrapped.pth')  # no meta either
    model = load_trained_model(cfg, str(tmp_path / 'wrapped.pth'), 'cpu')
    assert torch.equal(
        model.state_dict()['bbox_head.routers.cls.gate.fc.weight'], state['bbox_head.routers.cls.gate.fc.weight']
    )


def error(cfg, path, **options) -> str:
    with pytest.raises((CheckpointError, MoEConfigError)) as caught:
        load_trained_model(cfg, str(path), 'cpu', **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_that_does_not_fit_is_refused_with_what_is_wrong(folder, cfg, tmp_path):
    dense = load_config(folder / 'dense.py')
    assert 'builds no MoE layer' in error(dense, folder / 'dense.pth')
    load_trained_model(dense, str(folder / 'dense.pth'), 'cpu', require_moe=False)
    assert 'dense.pth has no MoE layer' in error(cfg, folder / 'dense.pth')
    # mmdet would copy a dense head into the experts; for an analysis that is no trained MoE
    assert 'dense.pth has no MoE layer' in error(cfg, folder / 'dense.pth', require_moe=False)
    assert 'Did you mean' in error(cfg, folder / 'mo.pth')

    content = torch.load(folder / 'moe.pth', weights_only=True)
    state = content['state_dict']
    missing = {key: value for key, value in state.items() if key != 'bbox_head.routers.reg.gate.fc.bias'}
    torch.save(dict(state_dict=missing), tmp_path / 'missing.pth')
    text = error(cfg, tmp_path / 'missing.pth')
    assert 'does not match' in text and 'lacks 1 tensors of the model (bbox_head.routers.reg.gate.fc.bias)' in text
    torch.save(dict(state_dict={**state, 'a.b': torch.zeros(1)}), tmp_path / 'more.pth')
    assert 'it has 1 that the model has not (a.b)' in error(cfg, tmp_path / 'more.pth')
    counters = {key: value for key, value in state.items() if not key.endswith('num_batches_tracked')}
    assert len(counters) < len(state)
    torch.save(dict(state_dict=counters), tmp_path / 'counters.pth')
    load_trained_model(cfg, str(tmp_path / 'counters.pth'), 'cpu')  # checkpoints of old torch lack them

    wide = load_config(folder / 'moe.py', {'model.bbox_head.moe.width': 1})
    assert 'size mismatch' in error(wide, folder / 'moe.pth')
    six = load_config(folder / 'moe.py', {'model.bbox_head.moe.num_experts': 6})
    assert 'num_experts=4' in error(six, folder / 'moe.pth') and 'num_experts=6' in error(six, folder / 'moe.pth')


def test_files_that_are_no_checkpoints_are_refused(folder, cfg, tmp_path):
    torch.save([1, 2], tmp_path / 'list.pth')
    assert 'expected a dict with state_dict, got list' in error(cfg, tmp_path / 'list.pth')
    torch.save(dict(meta=dict(epoch=1)), tmp_path / 'empty.pth')
    assert 'holds no weights; it has meta' in error(cfg, tmp_path / 'empty.pth')
    torch.save(dict(state_dict={}, code=fractions.Fraction), tmp_path / 'code.pth')
    if tuple(int(part) for part in torch.__version__.split('.')[:2]) >= (2, 6):
        assert 'cannot be loaded safely' in error(cfg, tmp_path / 'code.pth')
    whole = (folder / 'moe.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(whole[: len(whole) // 2])
    assert 'truncated' in error(cfg, tmp_path / 'cut.pth')


def test_device_is_checked(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert analysis_device() == torch.device('cuda') and analysis_device('cuda:0').index == 0
    with pytest.raises(MoEConfigError, match='cuda:1: this machine has 1 CUDA'):
        analysis_device('cuda:1')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert analysis_device() == torch.device('cpu')
    with pytest.raises(MoEConfigError, match='expected cpu, cuda or cuda:N'):
        analysis_device('gpu')


@pytest.mark.parametrize(
    'loader',
    [
        {},
        {'test_dataloader.batch_size': 3, 'test_dataloader.drop_last': True},
        {'test_dataloader.sampler': dict(type='DefaultSampler', shuffle=True, seed=3)},
        {'test_dataloader.batch_sampler': dict(type='AspectRatioBatchSampler')},
        {'test_dataloader.num_workers': 1, 'test_dataloader.persistent_workers': True},
    ],
)
def test_images_come_once_and_in_order_whatever_the_loader_does(folder, loader):
    cfg = load_config(folder / 'moe.py', loader, data_root=folder / 'data')
    batches = test_batches(cfg)
    for _ in range(2):
        assert [image_id for ids, _ in batches for image_id in ids] == [1, 2, 3, 4]
    assert len(batches) == len(list(batches)) and batches.num_images == 4
    assert cfg.test_dataloader.dataset.type == 'CocoDataset'  # the config is left as it is


def test_limit_takes_the_first_images(folder, cfg):
    cfg.test_dataloader.batch_size = 2
    batches = test_batches(cfg, 3)
    assert [ids for ids, _ in batches] == [[1, 2], [3]] and len(batches) == 2 and batches.num_images == 3
    assert len(batches.dataset) == 4 and batches.metainfo['classes'] == ('disc', 'box')
    assert test_batches(cfg, 99).num_images == 4
    for limit in (0, -1, True, 2.5):
        with pytest.raises(MoEConfigError, match='--limit'):
            test_batches(cfg, limit)


@pytest.mark.parametrize('ids', [['b/4.jpg', 'a', '17', 'ü'], [2**62 + 1, 2**53 + 1, 10**20, 0]])
def test_image_ids_are_those_of_the_file(folder, tmp_path, ids):
    shutil.copytree(folder / 'data', tmp_path / 'data')
    path = tmp_path / 'data' / 'annotations' / 'val.json'
    content = json.loads(path.read_text())
    new = {image['id']: image_id for image, image_id in zip(content['images'], ids, strict=True)}
    for image in content['images']:
        image['id'] = new[image['id']]
    for annotation in content['annotations']:
        annotation.update(image_id=new[annotation['image_id']], id=f'object {annotation["id"]}')
    path.write_text(json.dumps(content))
    cfg = load_config(folder / 'moe.py', data_root=tmp_path / 'data')
    batches = test_batches(cfg)
    assert [image_id for of_batch, _ in batches for image_id in of_batch] == ids
    truth = GroundTruth(path, ids, batches.dataset.cat_ids)
    for position, image_id in enumerate(ids):
        boxes = batches.dataset[position]['data_samples'].gt_instances.bboxes
        assert truth.positions_of([image_id]) == [position]
        assert len(truth.objects.of_image(position)) == len(boxes) > 0


def test_missing_data_and_ids_are_told(folder, cfg):
    with pytest.raises(DataError, match='make-shapes'):
        test_batches(load_config(folder / 'moe.py'))
    cfg.test_dataloader.dataset.pipeline[-1].meta_keys = ('img_path', 'ori_shape', 'img_shape', 'scale_factor')
    with pytest.raises(MoEConfigError, match="add 'img_id' to meta_keys"):
        next(iter(test_batches(cfg)))
    cfg.pop('test_dataloader')
    with pytest.raises(MoEConfigError, match='no test_dataloader'):
        test_batches(cfg)


def test_annotation_file_is_the_evaluators_then_the_data_sets(folder, cfg):
    expected = str(folder / 'data' / 'annotations' / 'val.json')
    assert annotation_file(cfg) == annotation_file(cfg, 'val') == expected
    cfg.test_evaluator.ann_file = None
    assert annotation_file(cfg) == expected
    cfg.test_dataloader.dataset.ann_file = 'absent.json'
    with pytest.raises(DataError, match='absent.json'):
        annotation_file(cfg)
