"""Compares checkpoints (dense, soft, hard; several seeds): AP by size and cost, as a Markdown table."""

from __future__ import annotations

import argparse

from .arguments import add_changes, file_name
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Evaluate checkpoints on the test set and print one table: AP by object size, seeds, cost.',
        epilog='Runs with the same NAME are seeds of one setting. A work folder stands for its config and its last '
        'checkpoint. Results are kept next to the checkpoints (FILE.pth.eval.json) and reused while checkpoint, '
        'config, annotations and package versions are the same.',
    )
    parser.add_argument('runs', nargs='+', metavar='NAME=RUN', help='RUN: WORK_DIR or CONFIG:CHECKPOINT')
    parser.add_argument(
        '--out',
        nargs='+',
        action='extend',
        type=file_name('.md', '.json'),
        default=[],
        metavar='FILE',
        help='write the table (.md) or all numbers (.json)',
    )
    parser.add_argument('--fresh', action='store_true', help='evaluate again what has a stored result')
    add_changes(parser)
    args = parser.parse_args(argv)
    for given in args.runs:
        name, equals, where = given.partition('=')
        if not (name.strip() and equals and where):
            parser.error(f'{given}: expected NAME=WORK_DIR or NAME=CONFIG:CHECKPOINT')
    return args


main = main_of(parse_args, 'moe_det.studies.run_results:compare_runs')
