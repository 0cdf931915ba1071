"""Trains a detector: mmdet's train.py, plus --data-root, --seed, a look at the data first and readable errors."""

from __future__ import annotations

import argparse

from .arguments import add_run_options, command_parser, with_local_rank
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Train a detector.',
    )
    parser.add_argument('--work-dir', help='folder for checkpoints and logs (default: ./work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help='mixed precision: fp16 on a GPU, bfloat16 on a CPU')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint, or without one from the last in the work folder',
    )
    add_run_options(parser)
    return with_local_rank(parser.parse_args(argv))


main = main_of(parse_args, 'moe_det.running.launch:train')
