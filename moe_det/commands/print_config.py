"""Prints a config with its bases merged, as the commands train and test see it."""

from __future__ import annotations

import argparse

from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog=prog, description='Print the whole config.')
    parser.add_argument('config', help="config file, a packaged config's name, or mmdet::... for one of mmdet's own")
    parser.add_argument('--save-path', metavar='FILE', help='save it too, as .py, .json or .yml')
    parser.add_argument('--data-root', help='folder that replaces the data folder of the config')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        metavar='KEY=VALUE',
        help='change config keys: model.backbone.depth=18 key="[a,b]" key="[(a,b),(c,d)]" (quotes, no spaces)',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error of the user's."""
    args = parse_args(argv, prog)
    return run('moe_det.engine.launch:print_config', **vars(args))
