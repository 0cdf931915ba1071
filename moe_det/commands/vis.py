"""Draws one image with the experts that each level or patch of it is given."""

from __future__ import annotations

import argparse
from pathlib import Path

from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Draw one image with the experts chosen per level or patch, and boxes coloured by COCO size.',
        epilog='The picture shows choices; the command report says whether experts specialise in sizes.',
    )
    parser.add_argument('config', help="config file, a packaged config's name, or mmdet::... for one of mmdet's own")
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('image', nargs='?', help='image file; or take one of the test set with --image-id')
    parser.add_argument('--out', metavar='FILE', help='.png, .svg or .pdf (default: ./<image name>_routing.png)')
    parser.add_argument('--layer', metavar='NAME', help='draw this MoE layer alone, such as bbox_head.cls')
    parser.add_argument('--ann-file', metavar='JSON', help='COCO annotations that hold the ground truth of the image')
    parser.add_argument('--data-root', metavar='DIR', help="folder of the config's data, for --image-id")
    parser.add_argument('--image-id', metavar='ID', help='an image of the test set, with its ground truth')
    parser.add_argument('--device', help='cpu, cuda or cuda:N (default: cuda where there is one)')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='X', help='least score (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='change config keys')
    args = parser.parse_args(argv)
    if (args.image is None) == (args.image_id is None):
        parser.error('give either an image file or --image-id (with --data-root where the data lie elsewhere)')
    if args.image_id is not None and args.ann_file is not None:
        parser.error('--image-id takes the annotations of the test set; --ann-file goes with an image file')
    if args.out is not None and Path(args.out).suffix.lower() not in ('.png', '.svg', '.pdf'):
        parser.error(f'--out {args.out}: expected a name that ends in .png, .svg or .pdf')
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    return run('moe_det.studies.image_routing:draw_routing', **vars(args))
