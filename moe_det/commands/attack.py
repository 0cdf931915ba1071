"""Tells what a detector withstands: attacks on its pixels and its gates, and common corruptions."""

from __future__ import annotations

import argparse
from typing import Any

from ..attacks.plan import ATTACKS, CORRUPTIONS, PARTS, SEVERITIES
from .arguments import add_changes, command_parser, file_name, number, whole_number
from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Attack a detector, its experts and its gates, corrupt its images, and print AP and how it drops.',
        'A small eps alone says little, and so does a small drop: look at the signs of gradient masking.',
        checkpoint='checkpoint file or URL',
    )
    parser.add_argument(
        '--also',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='another detector that is attacked and shown the same images, such as the dense one; may be repeated',
    )
    parser.add_argument(
        '--attacks',
        nargs='+',
        choices=(*ATTACKS, 'none'),
        metavar='NAME',
        help=f'{", ".join(ATTACKS)}, or none (default: all that the rows allow)',
    )
    parser.add_argument(
        '--eps',
        nargs='+',
        type=number(0, 256),
        default=[2.0, 4.0, 8.0],
        metavar='X',
        help='largest change of a pixel, of 255 (default: 2 4 8)',
    )
    parser.add_argument(
        '--loss',
        nargs='+',
        choices=PARTS,
        default=['both'],
        help='parts of the detection loss to attack (default: both)',
    )
    parser.add_argument(
        '--rows',
        nargs='+',
        choices=('own', 'forced', 'all'),
        default=['own', 'forced', 'all'],
        help='routings of the first detector: its own, each expert forced, all experts (default: these three)',
    )
    parser.add_argument(
        '--corruptions',
        nargs='+',
        choices=(*CORRUPTIONS, 'none'),
        default=list(CORRUPTIONS),
        metavar='NAME',
        help=f'{", ".join(CORRUPTIONS)}, or none (default: all)',
    )
    parser.add_argument(
        '--severities', nargs='+', type=int, choices=SEVERITIES, default=list(SEVERITIES), help='1 to 5 (default: all)'
    )
    parser.add_argument('--limit', type=whole_number(1), metavar='N', help='the first N test images (default: all)')
    parser.add_argument(
        '--universal-images',
        type=whole_number(1),
        default=64,
        metavar='N',
        help='universal perturbations are fitted to the last N test images (%(default)s)',
    )
    parser.add_argument(
        '--universal-passes', type=whole_number(1), default=5, metavar='N', help='passes over them (%(default)s)'
    )
    parser.add_argument('--seed', type=whole_number(0), default=0, help='of everything random (%(default)s)')
    parser.add_argument(
        '--out', nargs='+', default=[], type=file_name('.json', '.md'), metavar='FILE', help='.json or .md to write'
    )
    add_changes(parser)
    args = parser.parse_args(argv)
    for name in ('attacks', 'corruptions'):
        chosen = getattr(args, name)
        if chosen is None:
            continue
        if 'none' in chosen and len(chosen) > 1:
            parser.error(f'--{name}: none stands alone')
        setattr(args, name, [] if 'none' in chosen else list(dict.fromkeys(chosen)))
    for name in ('eps', 'loss', 'severities'):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)

    def work() -> None:
        from ..studies.attack_bench import Questions
        from ..studies.withstanding import attack

        asked: dict[str, Any] = {name: getattr(args, name) for name in Questions.__dataclass_fields__}
        questions = Questions(**asked)
        attack(
            args.config,
            args.checkpoint,
            questions,
            also=args.also,
            out=args.out,
            data_root=args.data_root,
            device=args.device,
            cfg_options=args.cfg_options,
        )

    return run(work)
