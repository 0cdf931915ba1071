"""Makes the synthetic shapes data set in COCO format."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec('moe_det') is None:  # a clone that was not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def _show_progress(done: int, total: int) -> None:
    step = max(1, total // 10)
    if done % step == 0 or done == total:
        print(f'  {done} of {total} images', flush=True)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error of the user's."""
    parser = argparse.ArgumentParser(description='Make a data set of shapes in COCO format (annotations and images).')
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
    parser.add_argument('--workers', type=int, default=1, metavar='N', help='processes (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='replace shapes of other settings')
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error(f'argument --workers: expected an integer >= 1, got {args.workers}')

    from moe_det.datasets.shapes import ShapesSettings, make_shapes
    from moe_det.errors import MoEDetError

    try:
        settings = ShapesSettings(args.train, args.val, args.size, args.seed, args.scene_scale)
        made = make_shapes(args.out, settings, overwrite=args.overwrite, workers=args.workers, progress=_show_progress)
    except MoEDetError as error:
        print(f'make_shapes.py: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'make_shapes.py: interrupted; run the same command again to complete {args.out}', file=sys.stderr)
        return 130
    what = f'{args.train} training and {args.val} validation images of {args.size}x{args.size}'
    print(f'{args.out}: {what} {"made" if made else "are already there"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
