"""The tools answer --help at once, without importing anything heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
PROBE = """
import runpy, sys
script, sys.argv = sys.argv[1], ['x', '--help']
try:
    runpy.run_path(script, run_name='__main__')
except SystemExit as end:
    sys.exit(end.code or 'torch' in sys.modules or 'matplotlib' in sys.modules)
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


@pytest.mark.parametrize('script', WORDS)
def test_help_answers_without_any_heavy_import(script):
    command = [sys.executable, '-c', PROBE, str(TOOLS / script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in (*WORDS[script], '--cfg-options'))
