"""Trains and evaluates a small MoE RetinaNet on synthetic shapes: ``make demo``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description='Train and evaluate a small MoE RetinaNet on synthetic shapes.')
    parser.add_argument('--config', default=str(_start.ROOT / 'configs' / 'shapes' / 'retinanet_moe_soft.py'))
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for checkpoints and summary.json')
    parser.add_argument('--data-root', default='data/shapes', help='folder of the shapes, made when missing')
    parser.add_argument('--train', type=int, default=800, help='training images to make')
    parser.add_argument('--val', type=int, default=200, help='validation images to make')
    args = parser.parse_args(argv)
    return _start.run('moe_det.engine.demo:run_demo', **vars(args))


if __name__ == '__main__':
    sys.exit(main())
