"""Counts parameters and multiply-adds of a config, total and active, compared with the same model without experts."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser, file_name
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Count parameters and multiply-adds of a config, part by part: of all experts, of those that run, '
        'and of the same model without experts.',
        'No checkpoint and no data are needed: every routing row runs K experts of one size, whichever the gate '
        'picks, so the counts are exact for any weights.',
    )
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='height and width of the image (default: 800 1280; classifiers: the size they are made for)',
    )
    parser.add_argument(
        '--json', dest='json_file', type=file_name('.json'), metavar='FILE', help='write all numbers too'
    )
    add_changes(parser, data=False, device=False)
    args = parser.parse_args(argv)
    if args.shape is not None and min(args.shape) < 8:
        parser.error(f'--shape {args.shape[0]} {args.shape[1]}: expected at least 8 pixels each')
    return args


main = main_of(parse_args, 'moe_det.cost.moe_cost:moe_cost')
