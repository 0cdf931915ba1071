"""Makes the synthetic shapes data set in COCO format."""

from __future__ import annotations

import argparse

from .arguments import whole_number
from .start import run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error of the user's."""
    parser = argparse.ArgumentParser(
        prog=prog, description='Make a data set of shapes in COCO format (annotations and images).'
    )
    parser.add_argument('out', metavar='OUT', help='folder to make')
    parser.add_argument('--train', type=int, default=800, metavar='N', help='training images (default: %(default)s)')
    parser.add_argument('--val', type=int, default=200, metavar='N', help='validation images (default: %(default)s)')
    parser.add_argument('--size', type=int, default=256, metavar='PX', help='side of an image (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, metavar='S', help='seed (default: %(default)s)')
    parser.add_argument(
        '--scene-scale',
        type=float,
        default=0.4,
        metavar='X',
        help='how much object sizes depend on the image, from 0 to 1 (default: %(default)s, as in photographs)',
    )
    parser.add_argument(
        '--scene-kinds',
        type=int,
        default=1,
        metavar='K',
        help='kinds of scenes, each with six classes and a background tint of its own (default: %(default)s)',
    )
    parser.add_argument(
        '--scenes',
        choices=('all', 'far', 'near'),
        default='all',
        help='all scenes, or only those with small or with large objects (default: %(default)s)',
    )
    parser.add_argument('--workers', type=whole_number(1), metavar='N', help='processes (default: one per core)')
    parser.add_argument('--overwrite', action='store_true', help='replace shapes of other settings')
    return run('moe_det.studies.shapes_data:make_shapes_data', **vars(parser.parse_args(argv)))
