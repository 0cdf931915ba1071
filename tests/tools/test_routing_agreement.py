"""routing_agreement.py and cluster_images.py on a tiny data set, with planted gates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_files import checkpoint, moe_config, plant_logits, plant_varied

from moe_det.running.launch import load_config
from moe_det.studies.image_clusters import training_images

pytestmark = pytest.mark.usefixtures('in_tmp_path')  # runs write into the current folder
AGREEMENT, CLUSTER = 'analysis_tools/routing_agreement.py', 'misc/cluster_images.py'


def test_a_gate_that_looks_at_nothing_always_agrees(tool, tiny_config, tiny_coco, tmp_path, capsys):
    config = moe_config(tiny_config)
    weights = checkpoint(config, tmp_path / 'planted.pth', lambda model: plant_logits(model, 0, 3, 1, 2))
    options = ['--data-root', str(tiny_coco), '--device', 'cpu', '--json', 'found.json']
    assert tool(AGREEMENT).main([str(config), str(weights), *options]) == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    assert list(found['agreement']) == ['flip', 'scale:0.75', 'jpeg:50', 'noise:8']
    for of_change in found['agreement'].values():
        assert set(of_change) == {'bbox_head.cls', 'bbox_head.reg'}
        for numbers in of_change.values():
            assert numbers['rows'] == found['images'] * 5  # levels
            assert (numbers['same_best'], numbers['overlap']) == (1, 1) and abs(numbers['divergence']) < 1e-9
    assert '100.0%' in capsys.readouterr().out

    varied = checkpoint(config, tmp_path / 'varied.pth', plant_varied)
    options += ['--changes', 'noise:0', 'brightness:200']
    assert tool(AGREEMENT).main([str(config), str(varied), *options]) == 0
    numbers = json.loads((tmp_path / 'found.json').read_text())['agreement']
    assert numbers['noise:0']['bbox_head.cls']['divergence'] < 1e-5
    assert numbers['brightness:200']['bbox_head.cls']['divergence'] > numbers['noise:0']['bbox_head.cls']['divergence']


def with_training_images_of_their_own(data: Path, target: Path) -> Path:
    """The data set with other ids in the training set than in the validation set."""
    shutil.copytree(data, target)
    path = target / 'annotations' / 'train.json'
    content = json.loads(path.read_text())
    content['images'] = [{**image, 'id': image['id'] + 100} for image in content['images']]
    content['annotations'] = [{**box, 'image_id': box['image_id'] + 100} for box in content['annotations']]
    path.write_text(json.dumps(content))
    return target


def test_training_images_are_clustered_by_the_backbones_features(tool, tiny_config, tiny_coco, tmp_path, capsys):
    weights = checkpoint(tiny_config, tmp_path / 'dense.pth')
    data = with_training_images_of_their_own(tiny_coco, tmp_path / 'data')
    options = ['--data-root', str(data), '--device', 'cpu', '--clusters', '2']
    assert tool(CLUSTER).main([str(tiny_config), str(weights), 'clusters.json', *options]) == 0
    found = json.loads((tmp_path / 'clusters.json').read_text())
    assert sum(found['sizes']) == found['images'] and len(found['sizes']) == 2
    np.testing.assert_allclose(np.linalg.norm(found['centroids'], axis=1), 1)
    assert 'wrote clusters.json' in capsys.readouterr().out
    cfg = training_images(load_config(str(tiny_config), None, data))
    assert cfg.test_dataloader.dataset.ann_file == load_config(str(tiny_config)).train_dataloader.dataset.ann_file
    assert torch.tensor(found['centroids']).shape[0] == 2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--clusters', '9999'], 'images cannot be divided into 9999 clusters'),
        (['--cfg-options', 'train_dataloader=None'], 'clusters need the images of train_dataloader'),
    ],
)
def test_too_few_images_are_one_message(fails, tiny_config, tiny_coco, tmp_path, arguments, message):
    weights = checkpoint(tiny_config, tmp_path / 'dense.pth')
    options = ['--data-root', tiny_coco, '--device', 'cpu', *arguments]
    assert message in fails(CLUSTER, tiny_config, weights, 'clusters.json', *options)


def test_an_unknown_change_is_one_message(fails, tiny_config):
    assert "--changes: unknown change 'blur'" in fails(AGREEMENT, tiny_config, 'none.pth', '--changes', 'blur:2')


def test_a_file_that_cannot_be_written_is_said_before_the_images_are_looked_at(fails, tiny_config):
    below_a_file = tiny_config / 'found.json'
    assert '--json ' in fails(AGREEMENT, tiny_config, 'none.pth', '--json', below_a_file)
