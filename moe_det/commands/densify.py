"""Makes a plain mmdet checkpoint from one with experts: one expert of every layer, or their average."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser, whole_number
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Keep one expert of every layer, or their average, as a checkpoint of the plain model.',
        'The checkpoint loads into the same config with RetinaHead and ResNet in place of MoERetinaHead and '
        'MoEResNet, in mmdet without moe_det.',
        config='config with experts',
        checkpoint='its checkpoint, file or URL',
    )
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
    parser.add_argument(
        '--limit', type=whole_number(1), metavar='N', help='with --most-used: the first N validation images'
    )
    add_changes(parser)
    return parser.parse_args(argv)


main = main_of(parse_args, 'moe_det.converters.densify:densify')
