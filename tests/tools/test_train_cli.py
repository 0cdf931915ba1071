"""The command line as a user meets it: help, mistakes, and a short training with resume and test."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_files import checkpoint, moe_config

from moe_det.running import launch

pytestmark = pytest.mark.usefixtures('in_tmp_path')  # runs write into the current folder
TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def test_mistakes_of_the_user_are_one_message_each(fails, tiny_config, tiny_coco):
    assert 'tiny_retinanet.py' in fails('train.py', 'tiny_retinnet.py')
    text = fails('train.py', tiny_config)
    assert str(Path('data/tiny').absolute()) in text and 'make_shapes.py' in text
    assert 'bad' in fails('train.py', tiny_config, '--cfg-options', 'bad')
    assert 'absent.pth' in fails('train.py', tiny_config, '--data-root', tiny_coco, '--resume', 'absent.pth')
    assert 'torchrun' in fails('train.py', tiny_config, '--data-root', tiny_coco, '--launcher', 'pytorch')
    assert 'base_batch_size' in fails('train.py', tiny_config, '--auto-scale-lr')
    assert 'absent.pth' in fails('test.py', tiny_config, 'absent.pth', '--data-root', tiny_coco)
    assert '.ini' in fails('misc/print_config.py', tiny_config, '--save-path', 'x.ini')


def test_print_config_is_a_config_again(tool, capsys, tiny_config, tmp_path):
    saved = tmp_path / 'made' / 'saved.py'
    arguments = [str(tiny_config), '--save-path', str(saved), '--data-root', 'elsewhere']
    assert tool('misc/print_config.py').main([*arguments, '--cfg-options', 'model.backbone.depth=34']) == 0
    (tmp_path / 'printed.py').write_text(capsys.readouterr().out)
    for path in (saved, tmp_path / 'printed.py'):
        cfg = launch.load_config(path)
        assert cfg.model.backbone.depth == 34
        assert cfg.test_evaluator.ann_file == 'elsewhere/annotations/val.json'


def test_train_resume_and_test(tool, capsys, tiny_config, tiny_coco, tmp_path):
    # a process of its own, from another folder, for the first training: the whole way a user goes
    first = [sys.executable, TOOLS / 'train.py', tiny_config, '--data-root', tiny_coco, '--resume', '--seed', '5']
    done = subprocess.run([*map(str, first)], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    work_dir = tmp_path / 'work_dirs' / 'tiny_retinanet'
    assert 'training starts from scratch' in done.stdout
    assert (work_dir / 'epoch_1.pth').is_file()
    command = done.stdout.split('Test it with:\n')[1].split()
    assert command[:4] == ['python', str(TOOLS / 'test.py'), str(tiny_config), 'work_dirs/tiny_retinanet/epoch_1.pth']
    assert launch.load_config(work_dir / tiny_config.name).randomness.seed == 5

    # the second epoch, in mixed precision; CPU or GPU
    options = ['--cfg-options', 'train_cfg.max_epochs=2']
    assert tool('train.py').main([str(tiny_config), '--data-root', str(tiny_coco), '--resume', '--amp', *options]) == 0
    log = max(work_dir.glob('*/*.log'), key=os.path.getmtime).read_text()
    assert 'resumed epoch: 1, iter: 2' in log
    assert 'Epoch(train) [2][2/2]' in log and 'Epoch(train) [1]' not in log
    assert (work_dir / 'epoch_2.pth').is_file()

    # the printed command, with predictions saved and drawn
    capsys.readouterr()
    arguments = [*command[2:], '--out', 'out/predictions.pkl', '--show-dir', 'drawn', '--work-dir', 'tested']
    assert tool('test.py').main(arguments) == 0
    assert 'coco/bbox_mAP' in (tmp_path / max(Path('tested').glob('*/*.log'))).read_text()
    predictions = pickle.loads(Path('out/predictions.pkl').read_bytes())
    assert sorted(item['img_id'] for item in predictions) == [1, 2, 3, 4]
    assert len(list(Path('tested').glob('*/drawn/*.png'))) == 4


def test_test_time_augmentation_scores_both_views(tool, tiny_config, tiny_coco):
    """Boxes found in the mirror image come back mirrored: on a model that sees the right half only, both halves."""
    from mmdet.registry import MODELS
    from mmengine.model import BaseModel
    from mmengine.structures import InstanceData

    @MODELS.register_module(force=True)
    class RightEdgeDetector(BaseModel):
        def __init__(self):
            super().__init__(data_preprocessor=dict(type='DetDataPreprocessor'))
            self.register_buffer('seen', torch.zeros(1))

        def forward(self, inputs, data_samples=None, mode='predict'):
            for sample in data_samples:
                found = InstanceData(bboxes=torch.tensor([[54.0, 10.0, 64.0, 20.0]]))
                found.scores, found.labels = torch.tensor([0.5]), torch.tensor([0])
                sample.pred_instances = found
            return data_samples

    torch.save(dict(state_dict=dict(seen=torch.ones(1)), meta={}), 'weights.pth')
    options = ['--cfg-options', 'model.type=RightEdgeDetector', 'model._delete_=True']
    shared = [str(tiny_config), 'weights.pth', '--data-root', str(tiny_coco), '--out', 'p.pkl']
    assert tool('test.py').main([*shared, '--tta', *options]) == 0
    for item in pickle.loads(Path('p.pkl').read_bytes()):
        boxes = sorted(item['pred_instances']['bboxes'].tolist())
        assert boxes == [[0.0, 10.0, 10.0, 20.0], [54.0, 10.0, 64.0, 20.0]]


@pytest.mark.parametrize('tta', [[], ['--tta']])
def test_a_checkpoint_that_does_not_fit_is_no_test(fails, tiny_config, tiny_coco, tta):
    """mmengine would leave random weights in place, and report their AP."""
    dense = checkpoint(tiny_config, Path('dense.pth').absolute())
    moe = moe_config(tiny_config)
    experts = checkpoint(moe, Path('moe.pth').absolute())
    state = torch.load(dense, weights_only=True)['state_dict']
    torch.save(dict(state_dict={k: v for k, v in state.items() if 'retina_reg' not in k}), 'half.pth')

    shared = ['--data-root', tiny_coco, *tta]
    text = fails('test.py', tiny_config, 'dense.pth', *shared, '--cfg-options', 'model.bbox_head.feat_channels=24')
    assert 'dense.pth does not match' in text and 'size mismatch for bbox_head.cls_convs.0' in text
    text = fails('test.py', tiny_config, 'half.pth', *shared)
    assert 'lacks 2 tensors of the model (bbox_head.retina_reg.weight, bbox_head.retina_reg.bias)' in text
    assert 'moe.pth does not match' in fails('test.py', tiny_config, experts, *shared)
    assert 'dense.pth has no MoE layer' in fails('test.py', moe, 'dense.pth', *shared)
    for number in ('num_experts=6', 'top_k=1'):
        assert number in fails('test.py', moe, experts, *shared, '--cfg-options', f'model.bbox_head.moe.{number}')


def test_ctrl_c_says_how_to_continue(tool, capsys, monkeypatch, tiny_config, tiny_coco, tmp_path):
    class Interrupted:
        def train(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(launch, 'build_runner', lambda cfg: Interrupted())
    arguments = [str(tiny_config), '--data-root', str(tiny_coco), '--work-dir', 'run']
    assert tool('train.py').main(arguments) == 130
    assert 'No checkpoint' in capsys.readouterr().err
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'epoch_3.pth').touch()
    (tmp_path / 'run' / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'epoch_3.pth'))
    assert tool('train.py').main(arguments) == 130
    err = capsys.readouterr().err
    assert 'epoch_3.pth' in err and '--resume' in err and 'Traceback' not in err


def test_resume_keeps_the_weights_to_start_from_when_there_is_nothing_to_resume(
    tool, capsys, monkeypatch, tiny_config, tiny_coco
):
    seen = {}

    class Recorder:
        def train(self):
            pass

    monkeypatch.setattr(launch, 'build_runner', lambda cfg: seen.update(cfg=cfg) or Recorder())
    torch.save(dict(meta=dict(epoch=1, iter=2), state_dict={}, message_hub={}), 'weights.pth')
    options = ['--cfg-options', 'load_from=weights.pth']
    assert tool('train.py').main([str(tiny_config), '--data-root', str(tiny_coco), '--resume', *options]) == 0
    assert (seen['cfg'].resume, seen['cfg'].load_from) == (False, 'weights.pth')
    assert 'weights.pth' in capsys.readouterr().out
    assert tool('train.py').main([str(tiny_config), '--data-root', str(tiny_coco), '--resume', 'weights.pth']) == 0
    assert (seen['cfg'].resume, seen['cfg'].load_from) == (True, 'weights.pth')


def test_runs_that_start_in_the_same_second_write_into_their_own_folders(monkeypatch, tiny_config, tiny_coco):
    import time

    monkeypatch.setattr(time, 'time', lambda: 1.7e9)
    for folder in ('first', 'second'):
        cfg = launch.load_config(tiny_config, data_root=str(tiny_coco), work_dir=folder)
        runner = launch.build_runner(cfg)
        runner.logger.info(f'the {folder} run speaks')
        runner.visualizer.add_scalar('loss', 1.0)
        shutil.rmtree('first', ignore_errors=True)  # a temporary folder, as of a sweep's runs
    (log,) = Path('second').glob('*/*.log')
    assert 'the second run speaks' in log.read_text()
    assert list(Path('second').glob('*/vis_data/scalars.json'))


@pytest.mark.parametrize('deterministic', [True, False])
def test_a_deterministic_run_asks_it_of_matrix_products_too(monkeypatch, tiny_config, deterministic):
    """Before torch 2.10 cuBLAS refuses to be deterministic without this variable, and gates are matrix products."""
    monkeypatch.setattr(launch.Runner, 'from_cfg', lambda cfg: cfg)
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', 'undone at the end')
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    launch.build_runner(launch.load_config(tiny_config, {'randomness.deterministic': deterministic}))
    assert os.environ.get('CUBLAS_WORKSPACE_CONFIG') == (':4096:8' if deterministic else None)
