"""Drops experts from a checkpoint and shows what that costs in AP."""

from __future__ import annotations

import argparse

from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Drop experts with their rows of gate, noise and constraints; test before and after.',
        epilog='The changes that the config needs are printed as --cfg-options.',
    )
    parser.add_argument('config', help='config with experts')
    parser.add_argument('checkpoint', help='its checkpoint, file or URL')
    parser.add_argument('out', metavar='OUT.pth', help='checkpoint to write')
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument('--drop', nargs='+', metavar='LAYER=N', help='experts to drop: cls=0 cls=3, or cls=0,3 reg=1,2')
    choice.add_argument(
        '--keep',
        type=int,
        metavar='N',
        help='experts that each layer keeps, or copies of each shard: those used most on the validation images',
    )
    parser.add_argument('--limit', type=int, metavar='N', help='with --keep: the first N validation images')
    parser.add_argument('--no-eval', dest='evaluate', action='store_false', help='no test before and after')
    parser.add_argument('--data-root', metavar='DIR', help='folder that replaces the data folder of the config')
    parser.add_argument('--device', help='cpu, cuda or cuda:N, for --keep (default: cuda where there is one)')
    parser.add_argument('--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='change config keys')
    args = parser.parse_args(argv)
    for name in ('keep', 'limit'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'argument --{name}: expected an integer >= 1, got {value}')
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    return run('moe_det.converters.prune:prune_experts', **vars(args))
