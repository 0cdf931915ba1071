"""Shows which classes the gates of an image classifier give to which experts."""

from __future__ import annotations

import argparse

from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Print, per expert, the classes that the gate gives it with the largest mean probability.',
        epilog='Errors are one message; MOE_DET_TRACEBACK=1 in the environment shows where they come from.',
    )
    parser.add_argument('config', help='config file of an image classifier with experts')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out-dir', metavar='DIR', help='numbers and figures (default: next to the checkpoint)')
    parser.add_argument('--top', type=int, default=5, metavar='N', help='classes per expert (default: %(default)s)')
    parser.add_argument('--data-root', metavar='DIR', help='folder that replaces the data folder of the config')
    parser.add_argument('--device', help='cpu, cuda or cuda:N (default: cuda where there is one)')
    parser.add_argument('--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='change config keys')
    args = parser.parse_args(argv)
    if args.top < 1:
        parser.error(f'argument --top: expected an integer >= 1, got {args.top}')
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    return run('moe_det.engine.class_allocation:show_class_allocation', **vars(args))
