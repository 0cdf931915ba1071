"""Prints a config with its bases merged, as the commands train and test see it."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command_parser(prog, 'Print the whole config.')
    parser.add_argument('--save-path', metavar='FILE', help='save it too, as .py, .json or .yml')
    add_changes(parser, device=False)
    return parser.parse_args(argv)


main = main_of(parse_args, 'moe_det.running.launch:print_config')
