"""Trains and evaluates a small MoE RetinaNet on synthetic shapes."""

from __future__ import annotations

import argparse

from .arguments import whole_number
from .start import run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description='Train and evaluate a small MoE RetinaNet on synthetic shapes.'
    )
    parser.add_argument('--config', default='shapes/retinanet_moe_soft', help='config file (default: %(default)s)')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for checkpoints and summary.json')
    parser.add_argument('--data-root', default='data/shapes', help='folder of the shapes, made when missing')
    parser.add_argument('--train', type=whole_number(1), default=800, help='training images to make (%(default)s)')
    parser.add_argument('--val', type=whole_number(1), default=200, help='validation images to make (%(default)s)')
    parser.add_argument('--epochs', type=whole_number(1), help="of each training (default: the config's)")
    args = parser.parse_args(argv)
    return run('moe_det.studies.demo:run_demo', **vars(args))
