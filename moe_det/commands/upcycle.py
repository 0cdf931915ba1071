"""Makes a checkpoint with experts from one of a dense mmdet model: every expert starts as a copy of the dense part."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser, number
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Fill the experts of a config from a dense checkpoint and report what was copied.',
        'Without noise the result predicts what the dense model predicts. Train it with load_from=OUT.',
        config='config with experts',
        checkpoint='dense checkpoint, file or URL',
    )
    parser.add_argument('out', metavar='OUT.pth', help='checkpoint to write')
    parser.add_argument(
        '--noise',
        type=number(0),
        metavar='X',
        help="standard deviation of the noise added to the experts, relative to each tensor's own (default: "
        'copy_noise of the config)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of all that is drawn (default: %(default)s)')
    parser.add_argument(
        '--allow-missing', action='store_true', help='write the checkpoint even if something does not fit'
    )
    add_changes(parser, data=False, device=False)
    return parser.parse_args(argv)


main = main_of(parse_args, 'moe_det.converters.upcycle:upcycle')
