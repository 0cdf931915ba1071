"""Draws one image with the experts that each level or patch of it is given."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser, file_name
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Draw one image with the experts chosen per level or patch, and boxes coloured by COCO size.',
        'The picture shows choices; the command report says whether experts specialise in sizes.',
        checkpoint='checkpoint file or URL',
    )
    parser.add_argument('image', nargs='?', help='image file; or take one of the test set with --image-id')
    parser.add_argument(
        '--out',
        type=file_name('.png', '.svg', '.pdf'),
        metavar='FILE',
        help='.png, .svg or .pdf (default: ./<image name>_routing.png)',
    )
    parser.add_argument('--layer', metavar='NAME', help='draw this MoE layer alone, such as bbox_head.cls')
    parser.add_argument('--ann-file', metavar='JSON', help='COCO annotations that hold the ground truth of the image')
    parser.add_argument('--image-id', metavar='ID', help='an image of the test set, with its ground truth')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='X', help='least score (default: %(default)s)')
    add_changes(parser)
    args = parser.parse_args(argv)
    if (args.image is None) == (args.image_id is None):
        parser.error('give either an image file or --image-id (with --data-root where the data lie elsewhere)')
    if args.image_id is not None and args.ann_file is not None:
        parser.error('--image-id takes the annotations of the test set; --ann-file goes with an image file')
    return args


main = main_of(parse_args, 'moe_det.studies.image_routing:draw_routing')
