"""Makes a plain mmdet checkpoint from one with experts: one expert of every layer, or their average."""

from __future__ import annotations

import argparse

from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Keep one expert of every layer, or their average, as a checkpoint of the plain model.',
        epilog='The checkpoint loads into the same config with RetinaHead and ResNet in place of MoERetinaHead and '
        'MoEResNet, in mmdet without moe_det.',
    )
    parser.add_argument('config', help='config with experts')
    parser.add_argument('checkpoint', help='its checkpoint, file or URL')
    parser.add_argument('out', metavar='OUT.pth', help='checkpoint to write')
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        '--expert',
        nargs='+',
        metavar='[LAYER=]N',
        help='one expert for all layers (2), or by layer (cls=0 reg=2); of shards the copy to take of each',
    )
    choice.add_argument('--average', action='store_true', help="the mean of the experts' weights")
    choice.add_argument(
        '--most-used', action='store_true', help='the expert, or copy of each shard, used most on the validation images'
    )
    parser.add_argument('--limit', type=int, metavar='N', help='with --most-used: the first N validation images')
    parser.add_argument('--data-root', metavar='DIR', help='folder that replaces the data folder of the config')
    parser.add_argument('--device', help='cpu, cuda or cuda:N, for --most-used (default: cuda where there is one)')
    parser.add_argument('--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='change config keys')
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error(f'argument --limit: expected an integer >= 1, got {args.limit}')
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    return run('moe_det.converters.densify:densify', **vars(args))
