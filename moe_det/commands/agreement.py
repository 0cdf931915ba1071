"""Measures how often the experts of an image stay when the image is flipped, scaled, compressed or noisy."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser, whole_number
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Route the test images and changed copies of them, and print how often the decisions agree.',
        config='config file of a detector or an image classifier with experts',
        checkpoint='checkpoint file or URL',
    )
    parser.add_argument(
        '--changes',
        nargs='+',
        metavar='CHANGE',
        help='flip, scale:FACTOR, jpeg:QUALITY, noise:DEVIATION, brightness:SHIFT, in pixel values of 0 to 255 '
        '(default: flip scale:0.75 jpeg:50 noise:8)',
    )
    parser.add_argument('--limit', type=whole_number(1), metavar='N', help='the first N test images (default: all)')
    parser.add_argument('--seed', type=whole_number(0), default=0, help='seed of the noise')
    parser.add_argument('--json', dest='json_file', metavar='FILE', help='write the numbers')
    add_changes(parser)
    return parser.parse_args(argv)


main = main_of(parse_args, 'moe_det.studies.routing_agreement:routing_agreement')
