"""Checks that a checkpoint's experts are in use, for the CI of training jobs: exit status 1 when routing collapsed."""

from __future__ import annotations

import argparse

from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Run the test images and check that the experts of every MoE layer are in use.',
        epilog='Exit status: 0 healthy, 1 collapsed, 2 wrong usage or an error, 130 after Ctrl-C.',
    )
    parser.add_argument('config', help="config file, a packaged config's name, or mmdet::... for one of mmdet's own")
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--data-root', metavar='DIR', help='folder that replaces the data folder of the config')
    parser.add_argument('--limit', type=int, metavar='N', help='the first N test images (default: all)')
    parser.add_argument(
        '--living-share',
        type=float,
        default=0.01,
        metavar='X',
        help='an expert is living if it holds more than this share of the weights (default: %(default)s)',
    )
    parser.add_argument(
        '--max-load-ratio', type=float, metavar='X', help='fail too if an expert has more than X times the fair load'
    )
    parser.add_argument(
        '--min-living', type=int, metavar='N', help='living experts required (default: more than a row uses)'
    )
    parser.add_argument('--json', dest='json_file', metavar='FILE', help='write the numbers')
    parser.add_argument('--device', help='cpu, cuda or cuda:N (default: cuda where there is one)')
    parser.add_argument('--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='change config keys')
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error(f'argument --limit: expected an integer >= 1, got {args.limit}')
    if not 0 <= args.living_share < 1:
        parser.error(f'argument --living-share: expected a share from 0 to below 1, got {args.living_share:g}')
    if args.max_load_ratio is not None and not args.max_load_ratio >= 1:
        parser.error(
            f'argument --max-load-ratio: 1 is the fair share; expected at least that, got {args.max_load_ratio:g}'
        )
    if args.min_living is not None and args.min_living < 1:
        parser.error(f'argument --min-living: expected an integer >= 1, got {args.min_living}')
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0 healthy, 1 collapsed, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    return run('moe_det.engine.health_check:check_health', unexpected=2, **vars(args))
