"""Every benchmark starts as its documentation says, from any folder."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys

import pytest
from common import ROOT

SCRIPTS = sorted((ROOT / 'benchmarks').glob('*.py'))


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.stem)
def test_help(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(script), '--help'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name='__main__')
    assert end.value.code == 0 and 'usage: ' in capsys.readouterr().out


def test_parts_are_found_from_another_folder(tmp_path):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, str(ROOT / 'benchmarks' / 'real_images.py'), '--help']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and '--data-root' in done.stdout, done.stderr
