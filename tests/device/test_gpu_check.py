"""The check for a user's GPU runs to its end on the pretended one, whose times say nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from device import start

# the others do what test_pretended_gpu.py does with every head, and take longer
SECTIONS = ('speed', 'profile', 'search', 'operators')


def test_it_runs_to_its_end(tmp_path):
    reason = start.why_not()
    if reason is not None:
        pytest.skip(reason)
    path = tmp_path / 'found.json'
    check = start.CHECKOUT / 'benchmarks' / 'gpu_check.py'
    # no limit may end a section on a machine that is busy with other things
    options = ['--small', '--minutes', '100', '--only', *SECTIONS, '--out', path]
    command = [sys.executable, start.__file__, check, *options]
    done = subprocess.run(command, env=start.environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'Everything is as it should be.' in done.stdout
    sections = json.loads(path.read_text())['sections']
    assert tuple(sections) == SECTIONS
    speed = sections['speed']['results']
    assert set(speed) == {'B=2, fp16', 'B=2, tf32'}
    for case in speed.values():
        for step in ('training', 'inference'):
            assert len(case[step]) == 2 and all(one['of dense']['median'] > 0 for one in case[step].values())
        for kind, memory in case['memory'].items():
            assert memory['peak_beyond_state'] > 0, kind
        assert set(sections['profile']['results']) == set(case['training'])
    assert sections['operators']['results']['nms equal'] is True
