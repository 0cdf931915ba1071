"""The tools answer --help at once, without importing anything heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
# one process asks every tool: what an earlier one imported, a later one finds imported as well
PROBE = """
import contextlib, io, json, runpy, sys
answers = {}
for script in sys.argv[1:]:
    sys.argv = ['x', '--help']
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(script, run_name='__main__')
            code = None
        except SystemExit as end:
            code = end.code
    answers[script] = code, 'torch' in sys.modules or 'matplotlib' in sys.modules, out.getvalue()
print(json.dumps(answers))
"""
RUN = ('--data-root', '--seed', '--work-dir', '--launcher')
WORDS = {
    'train.py': RUN,
    'test.py': RUN,
    'misc/print_config.py': (),
    'model_converters/upcycle.py': ('--noise', '--seed', '--allow-missing', 'OUT.pth'),
    'model_converters/densify.py': ('--expert', '--average', 'OUT.pth'),
    'model_converters/prune_experts.py': ('--drop', '--keep', '--no-eval', '--data-root'),
    'model_converters/export_onnx.py': ('--shape', '--batch', 'OUT.onnx'),
    'analysis_tools/moe_cost.py': ('--shape', '--json', 'H W'),
    'analysis_tools/vis_routing.py': ('--image-id', '--ann-file', '--layer', '--score-thr', '--device', '--data-root'),
    'analysis_tools/router_health.py': ('--max-load-ratio', '--min-living', '--living-share', 'Exit status')
    + ('--device', '--data-root'),
    'analysis_tools/compare_runs.py': ('NAME=RUN', '--fresh', '--out', 'seeds', '--device', '--data-root'),
    'analysis_tools/routing_agreement.py': ('--changes', '--limit', 'jpeg:QUALITY', '--device', '--data-root'),
    'misc/cluster_images.py': ('--clusters', '--limit', 'OUT.json', '--device', '--data-root'),
    'analysis_tools/class_allocation.py': ('--top', '--out-dir', '--device', '--data-root'),
    'analysis_tools/sweep_top_k.py': ('--top-k', '--json', '--data-root'),  # mmengine's runs choose their device
}


@pytest.fixture(scope='module')
def answers() -> dict[str, list]:
    command = [sys.executable, '-c', PROBE, *(str(TOOLS / script) for script in WORDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize('script', WORDS)
def test_help_answers_without_any_heavy_import(answers, script):
    code, heavy, shown = answers[str(TOOLS / script)]
    assert not code and not heavy
    assert all(word in shown for word in (*WORDS[script], '--cfg-options'))
