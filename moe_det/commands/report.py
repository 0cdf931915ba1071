"""Tells which experts fire for small and for large objects, and whether that is more than the pyramid level."""

from __future__ import annotations

import argparse

from ..called import command_line
from .arguments import add_changes, whole_number
from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog='Writes report.html, size_specialization.json and figures (PNG, SVG). An interrupted run continues '
        'where it stopped. Errors are one message; MOE_DET_TRACEBACK=1 in the environment shows where they come from.',
    )
    parser.add_argument('config', help='config file of a detector with MoE layers')
    parser.add_argument(
        'checkpoint', nargs='+', help='checkpoint file; several (runs of different seeds) are compared with each other'
    )
    parser.add_argument('--out-dir', help='folder of the report (default: <work dir>/size_specialization)')
    parser.add_argument(
        '--permutations', type=whole_number(100), default=10000, help='of routing rows between images (%(default)s)'
    )
    parser.add_argument(
        '--bootstrap', type=whole_number(0), default=10000, help='samples of images for intervals (%(default)s)'
    )
    parser.add_argument(
        '--area-ranges',
        nargs=2,
        type=float,
        default=(32.0, 96.0),
        metavar=('SIDE', 'SIDE'),
        help='limits in original pixels between small, medium and large sides (32 96)',
    )
    parser.add_argument('--limit', type=whole_number(1), metavar='N', help='only the first N images')
    parser.add_argument('--layers', nargs='+', metavar='NAME', help='only these MoE layers (default: all)')
    parser.add_argument(
        '--no-forcing',
        action='store_true',
        help='skip forced and knocked-out experts, routes that all images share, and other numbers of experts',
    )
    parser.add_argument(
        '--no-figures', action='store_true', help='the page and the numbers, but no PNG and SVG files of the figures'
    )
    parser.add_argument(
        '--swaps',
        type=whole_number(0),
        default=4,
        metavar='N',
        help='how often images exchange their routes in the swap test; 0 skips it, and no layer can then be '
        'called size-specialised (%(default)s)',
    )
    parser.add_argument(
        '--resamples', type=whole_number(50), default=200, help='samples of images for intervals of AP (%(default)s)'
    )
    parser.add_argument(
        '--groups',
        metavar='KEY',
        help="key of the json's images, such as video_id, that says which images belong together; without it they are "
        'taken as independent',
    )
    parser.add_argument('--seed', type=whole_number(0), default=0, help='of permutations and samples (%(default)s)')
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch'),
        default='none',
        help="'pytorch' in processes that torchrun started: they share the images (%(default)s)",
    )
    add_changes(parser)
    args = parser.parse_args(argv)
    if not 0 < args.area_ranges[0] < args.area_ranges[1]:
        parser.error(
            '--area-ranges {:g} {:g}: expected two sides in pixels, the smaller first'.format(*args.area_ranges)
        )
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)

    def work() -> None:
        from ..analysis.inputs import Settings
        from ..studies.size_specialization import AnalysisOptions, analyse

        options = AnalysisOptions(
            data_root=args.data_root,
            cfg_options=args.cfg_options,
            out_dir=args.out_dir,
            settings=Settings(args.permutations, args.bootstrap, args.seed, args.swaps, args.resamples),
            area_ranges=tuple(args.area_ranges),
            limit=args.limit,
            device=args.device,
            groups=args.groups,
            force=not args.no_forcing,
            layers=None if args.layers is None else tuple(args.layers),
            figures=not args.no_figures,
            launcher=args.launcher,
            command=command_line(),
        )
        analyse(args.config, args.checkpoint, options)

    return run(work)
