"""Makes a checkpoint with experts from one of a dense mmdet model: every expert starts as a copy of the dense part."""

from __future__ import annotations

import argparse

from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Fill the experts of a config from a dense checkpoint and report what was copied.',
        epilog='Without noise the result predicts what the dense model predicts. Train it with load_from=OUT.',
    )
    parser.add_argument('config', help='config with experts')
    parser.add_argument('checkpoint', help='dense checkpoint, file or URL')
    parser.add_argument('out', metavar='OUT.pth', help='checkpoint to write')
    parser.add_argument(
        '--noise',
        type=float,
        metavar='X',
        help="standard deviation of the noise added to the experts, relative to each tensor's own (default: "
        'copy_noise of the config)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of all that is drawn (default: %(default)s)')
    parser.add_argument(
        '--allow-missing', action='store_true', help='write the checkpoint even if something does not fit'
    )
    parser.add_argument('--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='change config keys')
    args = parser.parse_args(argv)
    if args.noise is not None and not 0 <= args.noise < float('inf'):
        parser.error(f'argument --noise: expected a number >= 0, got {args.noise:g}')
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    return run('moe_det.engine.converters.upcycle:upcycle', **vars(args))
