"""How every script here starts: as a command of the package, also in a clone that is not installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if find_spec('moe_det') is None:  # a clone that was not installed
    sys.path.insert(0, str(ROOT))

from moe_det.called import called  # noqa: E402
from moe_det.commands import COMMANDS  # noqa: E402
from moe_det.commands.start import leave, run  # noqa: E402

__all__ = ['ROOT', 'command', 'leave', 'run']

SCRIPTS = {
    'train': 'train.py',
    'test': 'test.py',
    'report': 'analysis_tools/size_specialization.py',
    'vis': 'analysis_tools/vis_routing.py',
    'health': 'analysis_tools/router_health.py',
    'compare': 'analysis_tools/compare_runs.py',
    'sweep': 'analysis_tools/sweep_top_k.py',
    'attack': 'analysis_tools/robustness.py',
    'agreement': 'analysis_tools/routing_agreement.py',
    'uncertainty': 'analysis_tools/uncertainty.py',
    'allocation': 'analysis_tools/class_allocation.py',
    'cost': 'analysis_tools/moe_cost.py',
    'upcycle': 'model_converters/upcycle.py',
    'densify': 'model_converters/densify.py',
    'prune': 'model_converters/prune_experts.py',
    'export': 'model_converters/export_onnx.py',
    'cluster': 'misc/cluster_images.py',
    'check-data': 'misc/check_dataset.py',
    'make-shapes': 'misc/make_shapes.py',
    'demo': 'misc/demo.py',
    'print-config': 'misc/print_config.py',
}


def command(name: str) -> Callable[..., int]:
    """Returns the main function of a command whose messages name the scripts here."""
    module = importlib.import_module(f'moe_det.commands.{COMMANDS[name][0]}')
    scripts = {name: str(ROOT / 'tools' / script) for name, script in SCRIPTS.items()}

    def main(argv: list[str] | None = None) -> int:
        with called(scripts=scripts):
            return module.main(argv)

    return main
