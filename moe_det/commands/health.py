"""Checks that a checkpoint's experts are in use, for the CI of training jobs: exit status 1 when routing collapsed."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser, number, whole_number
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Run the test images and check that the experts of every MoE layer are in use.',
        'Exit status: 0 healthy, 1 collapsed, 2 wrong usage or an error, 130 after Ctrl-C.',
        checkpoint='checkpoint file or URL',
    )
    parser.add_argument('--limit', type=whole_number(1), metavar='N', help='the first N test images (default: all)')
    parser.add_argument(
        '--living-share',
        type=number(0, 1),
        default=0.01,
        metavar='X',
        help='an expert is living if it holds more than this share of the weights (default: %(default)s)',
    )
    parser.add_argument(
        '--max-load-ratio',
        type=number(1),
        metavar='X',
        help='fail too if an expert has more than X times the fair load',
    )
    parser.add_argument(
        '--min-living',
        type=whole_number(1),
        metavar='N',
        help='living experts required (default: more than a row uses)',
    )
    parser.add_argument('--json', dest='json_file', metavar='FILE', help='write the numbers')
    add_changes(parser)
    return parser.parse_args(argv)


main = main_of(parse_args, 'moe_det.studies.health_check:check_health', unexpected=2)
