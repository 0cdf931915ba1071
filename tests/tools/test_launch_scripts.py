"""The shell scripts: usage, what they pass on, and two processes that really train together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running.detector_runs import free_port

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def run(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = ['bash', str(TOOLS / script), *[str(item) for item in arguments]]
    settings = {**os.environ, 'PYTHON': sys.executable, **environment}
    settings.pop('LOCAL_RANK', None)
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=settings)


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_syntax_and_help(script):
    assert subprocess.run(['bash', '-n', str(TOOLS / script)]).returncode == 0
    done = run(script, '--help')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith(f'usage: {script} ')


@pytest.mark.parametrize(
    ('script', 'arguments'),
    [
        ('dist_train.sh', ['config.py']),
        ('dist_train.sh', ['config.py', 'two']),
        ('dist_train.sh', ['config.py', '0']),
        ('dist_test.sh', ['config.py', '2']),
        ('dist_test.sh', ['config.py', '2', 'model.pth']),
        ('slurm_train.sh', ['partition', 'job', 'config.py']),
    ],
)
def test_wrong_arguments(script, arguments):
    done = run(script, *arguments)
    assert (done.returncode, done.stdout) == (2, '')
    assert f'usage: {script}' in done.stderr


def fake(folder: Path, name: str) -> None:
    """Puts a program into ``folder`` that prints its arguments, one per line."""
    (folder / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / name).chmod(0o755)


def test_slurm_gets_the_resources_and_train_its_arguments(tmp_path):
    fake(tmp_path, 'srun')
    settings = dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='16', SRUN_ARGS='--mem=8G --exclusive', PYTHON='py')
    done = run('slurm_train.sh', 'part', 'my job', 'c.py', 'my dir', '--cfg-options', 'a=[1, 2]', **settings)
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert {'--ntasks=16', '--ntasks-per-node=8', '--gres=gpu:8', '--job-name=my job', '--mem=8G'} <= set(lines)
    script = str(TOOLS / 'train.py')
    expected = ['py', '-u', script, 'c.py', '--work-dir=my dir', '--launcher=slurm', '--cfg-options', 'a=[1, 2]']
    assert lines[lines.index('py') :] == expected


def test_torchrun_gets_the_machines_and_the_script_its_arguments(tmp_path):
    fake(tmp_path, 'py')
    settings = dict(PYTHON=str(tmp_path / 'py'), NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234')
    lines = run('dist_test.sh', 'my config.py', 'm.pth', 4, '--out', 'p.pkl', **settings).stdout.splitlines()
    machines = ['--nnodes=2', '--node_rank=1', '--master_addr=10.0.0.1', '--master_port=1234', '--nproc_per_node=4']
    script = str(TOOLS / 'test.py')
    assert lines[1:] == [*machines, script, 'my config.py', 'm.pth', '--launcher', 'pytorch', '--out', 'p.pkl']


def test_without_torch_one_line_says_so(tmp_path):
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / '__init__.py').write_text("raise ImportError('no torch here')\n")
    done = run('dist_train.sh', 'config.py', 2, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'error: PyTorch cannot be imported: no torch here. Install torch and torchvision.\n'


ENDING = """
import atexit, sys
sys.path.insert(0, sys.argv[1])
import _start

class Kept:
    def __del__(self):
        print('finalised')

kept = Kept()
atexit.register(print, 'registered')
sys.stdout.write('written ')
_start.leave(3)
"""


@pytest.mark.parametrize(('rank', 'last'), [({}, ['finalised']), ({'LOCAL_RANK': '0'}, [])])
def test_one_of_several_processes_ends_without_finalisation(rank, last):
    alone = {key: value for key, value in os.environ.items() if key != 'LOCAL_RANK'}
    command = [sys.executable, '-c', ENDING, str(TOOLS)]
    done = subprocess.run(command, env={**alone, **rank}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (3, ['written', 'registered', *last])


def test_two_processes_train_one_model(tiny_config, tiny_coco, tmp_path):
    options = ['--cfg-options', 'env_cfg.dist_cfg.backend=gloo', 'train_dataloader.batch_size=1']
    arguments = ['--data-root', tiny_coco, '--work-dir', tmp_path / 'run', *options]
    # without a GPU, also where one is
    done = run('dist_train.sh', tiny_config, 2, *arguments, PORT=free_port(), CUDA_VISIBLE_DEVICES='')
    assert done.returncode == 0, done.stderr[-6000:]
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'Epoch(train) [1][2/2]' in log  # four images, one for each of two processes: two steps
    assert 'coco/bbox_mAP' in log
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()
    assert done.stdout.count('Training is done') == 1
