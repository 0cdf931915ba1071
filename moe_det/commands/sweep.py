"""Evaluates a checkpoint with K = 1 ... E active experts: how much a prediction needs more than its best expert."""

from __future__ import annotations

import argparse

from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Test a checkpoint once for each number of active experts and print the metrics.',
        epilog='Errors are one message; MOE_DET_TRACEBACK=1 in the environment shows where they come from.',
    )
    parser.add_argument('config', help='config file of a detector or an image classifier with experts')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--top-k', nargs='+', type=int, metavar='K', help='numbers to test (default: 1 to E)')
    parser.add_argument('--data-root', metavar='DIR', help='folder that replaces the data folder of the config')
    parser.add_argument('--json', dest='json_file', metavar='FILE', help='write the numbers')
    parser.add_argument('--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='change config keys')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    return run('moe_det.studies.top_k_sweep:sweep_top_k', **vars(args))
