"""Counts parameters and multiply-adds of a config, total and active, compared with the same model without experts."""

from __future__ import annotations

import argparse

from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Count parameters and multiply-adds of a config, part by part: of all experts, of those that run, '
        'and of the same model without experts.',
        epilog='No checkpoint and no data are needed: every routing row runs K experts of one size, whichever the gate '
        'picks, so the counts are exact for any weights.',
    )
    parser.add_argument('config', help="config file, a packaged config's name, or mmdet::... for one of mmdet's own")
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='height and width of the image (default: 800 1280; classifiers: the size they are made for)',
    )
    parser.add_argument('--json', dest='json_file', metavar='FILE', help='write all numbers too')
    parser.add_argument('--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='change config keys')
    args = parser.parse_args(argv)
    if args.shape is not None and min(args.shape) < 8:
        parser.error(f'--shape {args.shape[0]} {args.shape[1]}: expected at least 8 pixels each')
    if args.json_file is not None and not args.json_file.endswith('.json'):
        parser.error(f'--json {args.json_file}: expected a name that ends in .json')
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    return run('moe_det.engine.moe_cost:moe_cost', **vars(args))
