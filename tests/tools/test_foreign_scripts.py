"""``python -m moe_det.run_script`` runs scripts that import mmdet first, such as mmdet's own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_files import checkpoint, moe_config

ROOT = Path(__file__).resolve().parents[2]
MMDET_TEST = Path(find_spec('mmdet').origin).with_name('.mim') / 'tools' / 'test.py'


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    return subprocess.run(
        [sys.executable, '-m', 'moe_det.run_script', *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': path},
    )


def test_a_script_finds_operators_arguments_and_its_neighbours(tmp_path):
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there' / 'neighbour.py').write_text('from mmdet.models import RetinaHead\n')
    script = tmp_path / 'there' / 'script.py'
    script.write_text('import neighbour, sys\nprint(__name__, sys.argv)\nsys.exit(3)\n')
    done = run(tmp_path, 'there/script.py', 'a', '--help')
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1] == "__main__ ['there/script.py', 'a', '--help']"
    missing = run(tmp_path, 'absent.py')
    assert missing.returncode == 2 and 'absent.py: no such file' in missing.stderr


@pytest.mark.skipif(not MMDET_TEST.is_file(), reason='mmdet is installed without its tools')
def test_mmdets_own_test_script_evaluates_experts(tiny_config, tiny_coco, tmp_path):
    config = moe_config(tiny_config)
    checkpoint(config, tmp_path / 'moe.pth')
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'tiny').symlink_to(tiny_coco)
    done = run(tmp_path, MMDET_TEST, config, 'moe.pth', '--work-dir', 'tested')
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / 'tested').glob('*/*.log')
    assert 'Load checkpoint from moe.pth' in log.read_text() and 'coco/bbox_mAP' in log.read_text()
