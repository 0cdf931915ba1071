"""Evaluates a checkpoint with K = 1 ... E active experts: how much a prediction needs more than its best expert."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Test a checkpoint once for each number of active experts and print the metrics.',
        config='config file of a detector or an image classifier with experts',
        checkpoint='checkpoint file or URL',
    )
    parser.add_argument('--top-k', nargs='+', type=int, metavar='K', help='numbers to test (default: 1 to E)')
    parser.add_argument('--json', dest='json_file', metavar='FILE', help='write the numbers')
    add_changes(parser, device=False)
    return parser.parse_args(argv)


main = main_of(parse_args, 'moe_det.studies.top_k_sweep:sweep_top_k')
