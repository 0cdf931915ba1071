"""Drops experts from a checkpoint and shows what that costs in AP."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser, whole_number
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Drop experts with their rows of gate, noise and constraints; test before and after.',
        'The changes that the config needs are printed as --cfg-options.',
        config='config with experts',
        checkpoint='its checkpoint, file or URL',
    )
    parser.add_argument('out', metavar='OUT.pth', help='checkpoint to write')
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument('--drop', nargs='+', metavar='LAYER=N', help='experts to drop: cls=0 cls=3, or cls=0,3 reg=1,2')
    choice.add_argument(
        '--keep',
        type=whole_number(1),
        metavar='N',
        help='experts that each layer keeps, or copies of each shard: those used most on the validation images',
    )
    parser.add_argument('--limit', type=whole_number(1), metavar='N', help='with --keep: the first N validation images')
    parser.add_argument('--no-eval', dest='evaluate', action='store_false', help='no test before and after')
    add_changes(parser)
    return parser.parse_args(argv)


main = main_of(parse_args, 'moe_det.converters.prune:prune_experts')
