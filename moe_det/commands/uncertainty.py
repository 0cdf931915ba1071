"""Tells what gates and experts know about a detector's errors: doubts of each detection, and calibration."""

from __future__ import annotations

import argparse

from ..attacks.plan import CORRUPTIONS, SEVERITIES
from .arguments import add_changes, command_parser, number, whole_number
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Ask every expert about every detection: entropy of gates, disagreement, calibration of scores.',
        'Writes uncertainty.csv, .json and .md, and a reliability plot.',
        checkpoint='checkpoint file or URL',
    )
    parser.add_argument('--out-dir', metavar='DIR', help='folder of the files (default: <work dir>/uncertainty)')
    parser.add_argument(
        '--score-thr', type=number(0, 1), default=0.3, metavar='X', help='least score of a detection (%(default)s)'
    )
    parser.add_argument(
        '--bins', type=whole_number(1), default=15, metavar='N', help='intervals of scores (%(default)s)'
    )
    parser.add_argument(
        '--corruption',
        nargs=2,
        action='append',
        default=[],
        metavar=('NAME', 'SEVERITY'),
        help='look at corrupted images too, such as fog 3; may be repeated',
    )
    parser.add_argument('--limit', type=whole_number(1), metavar='N', help='the first N test images (default: all)')
    parser.add_argument('--seed', type=whole_number(0), default=0, help='of what corruptions draw (%(default)s)')
    add_changes(parser)
    args = parser.parse_args(argv)
    for name, severity in args.corruption:
        if name not in CORRUPTIONS or severity not in map(str, SEVERITIES):
            parser.error(f'--corruption {name} {severity}: expected one of {", ".join(CORRUPTIONS)}, and 1 to 5')
    args.corruption = [(name, int(severity)) for name, severity in args.corruption]
    return args


main = main_of(parse_args, 'moe_det.studies.uncertainty:measure_uncertainty')
