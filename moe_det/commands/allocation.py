"""Shows which classes the gates of an image classifier give to which experts."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser, whole_number
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Print, per expert, the classes that the gate gives it with the largest mean probability.',
        config='config file of an image classifier with experts',
        checkpoint='checkpoint file or URL',
    )
    parser.add_argument('--out-dir', metavar='DIR', help='numbers and figures (default: next to the checkpoint)')
    parser.add_argument(
        '--top', type=whole_number(1), default=5, metavar='N', help='classes per expert (default: %(default)s)'
    )
    add_changes(parser)
    return parser.parse_args(argv)


main = main_of(parse_args, 'moe_det.classification.allocation_study:show_class_allocation')
