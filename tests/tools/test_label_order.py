"""A training whose config lists the classes in another order than the annotation files, and what follows."""

from __future__ import annotations

import json
import shutil

import torch
from mmdet.apis import init_detector
from small_files import moe_config


def test_a_checkpoint_names_its_labels_and_is_refused_where_a_file_gives_others(
    tool, tiny_config, tiny_coco, tmp_path, capsys
):
    tiny_config.write_text(tiny_config.read_text().replace("classes=('disc', 'box')", "classes=('box', 'disc')"))
    config = str(moe_config(tiny_config))
    work = tmp_path / 'work'
    arguments = [config, '--data-root', str(tiny_coco), '--work-dir', str(work)]
    assert tool('train.py').main(arguments) == 0
    assert "metainfo=dict(classes=('disc', 'box'))" in capsys.readouterr().err
    weights = str(work / 'epoch_1.pth')
    assert list(torch.load(weights)['meta']['dataset_meta']['classes']) == ['disc', 'box']
    assert list(init_detector(config, weights, device='cpu').dataset_meta['classes']) == ['disc', 'box']

    other = tmp_path / 'other'
    shutil.copytree(tiny_coco, other)
    for split in ('train', 'val'):
        path = other / 'annotations' / f'{split}.json'
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, 'categories': content['categories'][::-1]}))
    for script, more in (
        ('test.py', ['--work-dir', str(work)]),
        ('analysis_tools/router_health.py', ['--device', 'cpu']),
        ('analysis_tools/size_specialization.py', ['--device', 'cpu', '--out-dir', str(tmp_path / 'report')]),
        ('analysis_tools/sweep_top_k.py', []),
    ):
        capsys.readouterr()
        assert tool(script).main([config, weights, '--data-root', str(other), *more]) == 2
        err = capsys.readouterr().err
        assert "label 0: 'disc' there, 'box' here" in err and str(other / 'annotations' / 'val.json') in err
