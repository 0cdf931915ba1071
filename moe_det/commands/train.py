"""Trains a detector: mmdet's train.py, plus --data-root, --seed, a look at the data first and readable errors."""

from __future__ import annotations

import argparse

from .start import add_run_options, run, with_local_rank


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Train a detector.',
        epilog='Errors are one message; MOE_DET_TRACEBACK=1 in the environment shows where they come from.',
    )
    parser.add_argument('config', help="config file, a packaged config's name, or mmdet::... for one of mmdet's own")
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
    add_run_options(parser, 'model.backbone.depth=18')
    args = parser.parse_args(argv)
    return with_local_rank(args)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    return run('moe_det.running.launch:train', **vars(args))
