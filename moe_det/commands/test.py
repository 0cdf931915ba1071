"""Evaluates a checkpoint: mmdet's test.py, plus --data-root, --seed, a look at the data first and readable errors."""

from __future__ import annotations

import argparse

from .arguments import add_run_options, command_parser, file_name, with_local_rank
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Evaluate a checkpoint on the test set of a config.',
        checkpoint='checkpoint file or URL',
    )
    parser.add_argument('--work-dir', help='folder for metrics and logs (default: ./work_dirs/<config name>)')
    parser.add_argument(
        '--out', type=file_name('.pkl', '.pickle'), metavar='FILE.pkl', help='save the predictions as a pickle'
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='save painted images in <work-dir>/<time stamp>/SHOW_DIR')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show leaves an image open')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation: the config's own, else flips")
    add_run_options(parser)
    return with_local_rank(parser.parse_args(argv))


main = main_of(parse_args, 'moe_det.running.launch:test')
