"""Trains and evaluates a small MoE RetinaNet on synthetic shapes: ``make demo``."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if find_spec('moe_det') is None:  # a clone that was not installed
    sys.path.insert(0, str(ROOT))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description='Train and evaluate a small MoE RetinaNet on synthetic shapes.')
    parser.add_argument('--config', default=str(ROOT / 'configs' / 'shapes' / 'retinanet_moe_soft.py'))
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for checkpoints and summary.json')
    parser.add_argument('--data-root', default='data/shapes', help='folder of the shapes, made when missing')
    parser.add_argument('--train', type=int, default=800, help='training images to make')
    parser.add_argument('--val', type=int, default=200, help='validation images to make')
    args = parser.parse_args(argv)
    from moe_det.engine.demo import run_demo
    from moe_det.engine.user_errors import run_main

    options = ['--train', str(args.train), '--val', str(args.val)]
    script = str(ROOT / 'tools' / 'misc' / 'make_shapes.py')
    return run_main(lambda: run_demo(args.config, args.work_dir, args.data_root, script, options) and 0)


if __name__ == '__main__':
    sys.exit(main())
