"""The analysis tools answer --help at once, without importing anything heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools' / 'analysis_tools'


@pytest.mark.parametrize(
    ('script', 'words'),
    [
        ('vis_routing.py', ('--image-id', '--ann-file', '--layer', '--score-thr')),
        ('router_health.py', ('--max-load-ratio', '--min-living', '--living-share', 'Exit status')),
        ('compare_runs.py', ('NAME=RUN', '--fresh', '--out', 'seeds')),
        ('class_allocation.py', ('--top', '--out-dir')),
        ('sweep_top_k.py', ('--top-k', '--json')),
    ],
)
def test_help_answers_without_any_heavy_import(script, words):
    probe = (
        'import runpy, sys\n'
        "sys.argv = ['x', '--help']\n"
        'try:\n'
        f"    runpy.run_path({str(TOOLS / script)!r}, run_name='__main__')\n"
        'except SystemExit as end:\n'
        "    sys.exit(end.code or 'torch' in sys.modules or 'matplotlib' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, '-c', probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    device = () if script == 'sweep_top_k.py' else ('--device',)  # a run of mmengine chooses its device itself
    assert all(word in done.stdout for word in (*words, '--cfg-options', *device, '--data-root'))
