"""The built wheel alone, in an empty folder: commands, configs and tools, a training and a look at its experts."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    'LICENSE',
    'MANIFEST.in',
    'README.md',
    'configs',
    'model-index.yml',
    'moe_det',
    'pyproject.toml',
    'setup.py',
    'tools',
)
# a network and a training of seconds
TINY = [
    'model.backbone.base_channels=8',
    'model.neck.in_channels=[8,16,32,64]',
    'model.neck.out_channels=16',
    'model.bbox_head.in_channels=16',
    'model.bbox_head.feat_channels=16',
    'train_dataloader.batch_size=2',
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=9',
]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources: a build leaves folders beside them."""
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, source / name)
    # without a network where setuptools is here, as make setup brings it
    recent = int(importlib.metadata.version('setuptools').partition('.')[0]) >= 77
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir', out]
    command += ['--no-build-isolation'] if recent else []
    done = subprocess.run([*command, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob('*.whl')
    return built


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory) -> Path:
    """A folder that holds the installed package and nothing else."""
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', folder, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope='module')
def call(site, tmp_path_factory):
    """``call(*command)`` runs a program in an empty folder, without the sources: exit status, stdout, stderr."""
    stack = [
        path for path in os.environ.get('PYTHONPATH', '').split(os.pathsep) if path and Path(path).resolve() != ROOT
    ]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(site), *stack]), 'CUDA_VISIBLE_DEVICES': ''}
    environment.pop('MOE_DET_TRACEBACK', None)
    here = tmp_path_factory.mktemp('elsewhere')

    def run(*command: object) -> subprocess.CompletedProcess:
        words = [str(word) for word in command]
        if words[0] == 'moe-det':
            words = [sys.executable, str(site / 'bin' / 'moe-det'), *words[1:]]
        return subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, check=False)

    run.folder = here
    return run


def test_metadata_and_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith('.dist-info/METADATA')]
    for path in (
        'py.typed',
        '.mim/model-index.yml',
        'report/report_template.html',
        'report/report.css',
    ):
        assert f'moe_det/{path}' in names
    for folder in ('configs', 'tools'):
        tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob('*') if path.is_file()}
        wanted = {f'moe_det/.mim/{name}' for name in tracked if '__pycache__' not in name}
        assert wanted and wanted <= names
    head, _, readme = metadata.partition('\n\n')
    fields = [line.partition(':')[0] for line in head.splitlines()]
    assert {'Author', 'Keywords', 'Project-URL', 'Requires-Python', 'License-Expression'} <= set(fields)
    assert readme.strip() == (ROOT / 'README.md').read_text(encoding='utf-8').strip()


def test_commands_answer_from_the_wheel(call, site):
    where = call(sys.executable, '-c', 'import moe_det; print(moe_det.__file__)').stdout.strip()
    assert Path(where).is_relative_to(site)
    names = [line.split()[0] for line in call('moe-det', 'configs', 'list').stdout.splitlines()]
    configs = {path.relative_to(ROOT / 'configs') for path in (ROOT / 'configs').rglob('*.py')}
    assert set(names) == {path.with_suffix('').as_posix() for path in configs if '_base_' not in path.parts}
    assert '\n  train ' in call(sys.executable, '-m', 'moe_det', '--help').stdout
    near = call('moe-det', 'configs', 'copy', 'retinanet_moe_sotf')
    assert near.returncode == 2 and "Did you mean 'retinanet_moe_soft'?" in near.stderr


def test_from_shapes_to_trained_experts(call):
    made = call('moe-det', 'make-shapes', 'shapes', '--train', 4, '--val', 4, '--size', 128, '--workers', 1)
    assert made.returncode == 0, made.stderr
    # an own config on one of the package's, by the name that mmengine's bases have
    (call.folder / 'mine.py').write_text("_base_ = 'moe_det::shapes/retinanet_moe_soft.py'\n")
    options = ['--data-root', 'shapes', '--cfg-options', *TINY]
    trained = call('moe-det', 'train', 'mine.py', '--work-dir', 'run', *options)
    assert trained.returncode == 0, trained.stderr[-3000:]
    command = trained.stdout.split('Test it with:\n')[1].split()
    assert command[:4] == ['moe-det', 'test', 'mine.py', 'run/epoch_1.pth']
    # 4 images at 5 levels; an hour's training, not this one, has healthy gates to show
    gates = ['--min-living', '1', '--json', 'health.json', *options]
    health = call(sys.executable, '-m', 'moe_det', 'health', 'shapes/retinanet_moe_soft', 'run/epoch_1.pth', *gates)
    assert health.returncode == 0, health.stderr[-3000:]
    layers = json.loads((call.folder / 'health.json').read_text())['layers']
    assert set(layers) == {'bbox_head.cls', 'bbox_head.reg'}
