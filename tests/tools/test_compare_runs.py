"""compare_runs.py: the numbers are those of test.py, results are stored and reused, seeds are counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_files import checkpoint, moe_config, table_cells

from moe_det.errors import CheckpointError, MoEConfigError
from moe_det.running import launch
from moe_det.studies import run_results
from moe_det.studies.run_results import STORED_SUFFIX, parse_run

pytestmark = pytest.mark.usefixtures('in_tmp_path')  # runs write into the current folder
TOOL = 'analysis_tools/compare_runs.py'


def plant_detections(model: torch.nn.Module) -> None:
    """Scores that are not alike everywhere, so that some detections hit by chance."""
    generator = torch.Generator().manual_seed(len(list(model.parameters())))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.fixture
def runs(tiny_config, tmp_path) -> dict[str, str]:
    """A dense and a MoE run, two seeds of the latter."""
    config = moe_config(tiny_config, constraint=dict(type='RelativeImportanceConstraint'))
    for seed in (1, 2):
        checkpoint(config, tmp_path / f'hard{seed}.pth', plant_detections, seed)
    checkpoint(tiny_config, tmp_path / 'dense.pth', plant_detections)
    return {
        'dense': f'dense={tiny_config}:dense.pth',
        'hard1': f'hard={config}:hard1.pth',
        'hard2': f'hard={config}:hard2.pth',
    }


def test_table_of_dense_and_two_seeds(tool, capsys, runs, tiny_config, tiny_coco, tmp_path):
    arguments = [*runs.values(), '--data-root', str(tiny_coco), '--device', 'cpu', '--out', 'a/table.md', 'a/all.json']
    assert tool(TOOL).main(arguments) == 0
    out = capsys.readouterr().out
    assert table_cells(Path('a/table.md').read_text()) == table_cells(out)
    dense, hard = table_cells(out)[2:]
    assert dense[:3] == ['dense', 'dense', '1'] and '±' not in ''.join(dense)
    assert hard[:3] == ['hard', 'hard, 2 of 4 per level', '2'] and '±' in hard[3]
    # no object of the tiny set is medium or large
    assert dense[5:7] == hard[5:7] == ['–', '–']
    stored = json.loads(Path('a/all.json').read_text())['runs']
    assert [run['seed'] for run in stored['hard']['checkpoints']] == [1, 2]
    assert stored['hard']['checkpoints'][0]['macs'] > 0
    # mmdet's own evaluation rounds to three digits
    aps = []
    for name, config, found in [
        ('dense.pth', tiny_config, stored['dense']['checkpoints'][0]),
        ('hard1.pth', tmp_path / 'moe.py', stored['hard']['checkpoints'][0]),
    ]:
        metrics = launch.test(str(config), name, data_root=str(tiny_coco), work_dir='tested')
        for ours, theirs in (('AP', 'mAP'), ('AP50', 'mAP_50'), ('AP75', 'mAP_75'), ('AP_S', 'mAP_s')):
            assert found['ap'][ours] == pytest.approx(metrics[f'coco/bbox_{theirs}'], abs=6e-4)
        assert found['ap']['AP_M'] is None and metrics['coco/bbox_mAP_m'] == -1
        aps.append(found['ap']['AP'])
    assert max(aps) > 0


def test_results_are_reused_until_something_changes(tool, capsys, monkeypatch, runs, tiny_coco, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(tiny_coco, data)
    evaluated = []
    measure = run_results._average_precision
    monkeypatch.setattr(run_results, '_average_precision', lambda *a: evaluated.append(1) or measure(*a))

    def table(*options: str, run: str = runs['dense']) -> list[list[str]]:
        capsys.readouterr()
        evaluated.clear()
        assert tool(TOOL).main([run, '--data-root', str(data), '--device', 'cpu', *options]) == 0
        return table_cells(capsys.readouterr().out)[2:]

    first = table()
    assert evaluated and Path('dense.pth' + STORED_SUFFIX).is_file()
    assert table() == first and not evaluated
    (renamed,) = table(run=runs['dense'].replace('dense=', 'other='))
    assert renamed[0] == 'other' and renamed[1:] == first[0][1:] and not evaluated
    table('--fresh')
    assert evaluated
    table('--cfg-options', 'model.test_cfg.max_per_img=5')
    assert evaluated
    table()
    assert evaluated  # the stored result is that of the other setting
    content = torch.load('dense.pth', weights_only=True)
    content['state_dict']['bbox_head.retina_cls.bias'] += 1
    torch.save(content, 'dense.pth')
    table()
    assert evaluated
    path = data / 'annotations' / 'val.json'
    path.write_text(path.read_text() + ' ')
    table()
    assert evaluated
    Path('dense.pth' + STORED_SUFFIX).write_text('{"fingerprint": ')
    table()
    assert evaluated


def test_a_work_folder_stands_for_its_config_and_last_checkpoint(runs, tiny_config, tmp_path):
    folder = tmp_path / 'work=dir'
    folder.mkdir()
    with pytest.raises(MoEConfigError, match='found none'):
        parse_run(f'a={folder}')
    shutil.copy(tiny_config, folder)
    with pytest.raises(MoEConfigError, match='no training has saved a checkpoint'):
        parse_run(f'a={folder}')
    for name in ('epoch_1.pth', 'epoch_2.pth', 'best_coco_bbox_mAP_epoch_1.pth'):
        shutil.copy('dense.pth', folder / name)
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    spec = parse_run(f' a b ={folder}')
    assert (spec.name, Path(spec.config), Path(spec.checkpoint)) == (
        'a b',
        folder / tiny_config.name,
        folder / 'epoch_2.pth',
    )
    (folder / 'second.py').touch()
    with pytest.raises(MoEConfigError, match='found 2: second.py, tiny_retinanet.py'):
        parse_run(f'a={folder}')


def test_config_and_checkpoint_are_told_apart(tmp_path):
    Path('x:y.pth').touch()
    for text in ('a', '=b', 'a=', 'a=nowhere', 'a=config.py'):
        with pytest.raises(MoEConfigError, match='NAME=WORK_DIR or NAME=CONFIG:CHECKPOINT'):
            parse_run(text)
    with pytest.raises(CheckpointError, match='absent.pth does not exist'):
        parse_run('a=c.py:absent.pth')
    spec = parse_run('a=mmdet::retinanet/x.py:https://host/weights.pth')
    assert (spec.config, spec.checkpoint) == ('mmdet::retinanet/x.py', 'https://host/weights.pth')


def test_unfair_comparisons_and_mistakes_are_status_2(fails, runs, tiny_config, tiny_coco, tmp_path):
    shared = ['--data-root', tiny_coco, '--device', 'cpu']
    assert 'the same weights' in fails(TOOL, runs['dense'], runs['dense'], *shared)
    assert 'another model' in fails(TOOL, runs['dense'], runs['hard1'].replace('hard=', 'dense='), *shared)
    assert 'does not match the config' in fails(TOOL, f'a={tiny_config}:hard1.pth', *shared)
    assert 'has no MoE layer' in fails(TOOL, f'a={tmp_path / "moe.py"}:dense.pth', *shared)
    below_a_file = tmp_path / 'moe.py' / 'x.md'
    assert 'cannot be written' in fails(TOOL, runs['dense'], *shared, '--out', below_a_file)


def test_equal_seeds_are_warned_of(tool, capsys, runs, tiny_coco, tmp_path):
    checkpoint(tmp_path / 'moe.py', tmp_path / 'again.pth', seed=1)
    again = runs['hard1'].replace('hard1.pth', 'again.pth')
    assert tool(TOOL).main([runs['hard1'], again, '--data-root', str(tiny_coco)]) == 0
    assert 'two of the checkpoints were trained with the same seed (1, 1)' in capsys.readouterr().err
    assert tool(TOOL).main([runs['hard1'], runs['hard2'], '--data-root', str(tiny_coco)]) == 0
    assert 'same seed' not in capsys.readouterr().err
