"""The short form of benchmarks/kill_and_resume.py: real processes, real SIGKILLs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from small_models import REPOSITORY


@pytest.mark.skipif(sys.platform != 'linux', reason='forks and process groups')
def test_killed_trainings_resume_and_end_as_the_uninterrupted_one(tmp_path):
    out = tmp_path / 'record.json'
    command = [sys.executable, str(REPOSITORY / 'benchmarks' / 'kill_and_resume.py')]
    arguments = ['--kills', '2', '--epochs', '1', '--out', str(out), '--seed', '2']
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads(out.read_text())['runs']
    assert len(run['kills']) == 2 and all(kill['resumed'] for kill in run['kills'])
    assert run['equal'] and run['problems'] == [] and run['slow']
    assert '| 2 of 2 |' in out.with_suffix('.md').read_text()
