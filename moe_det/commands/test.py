"""Evaluates a checkpoint: mmdet's test.py, plus --data-root, --seed, a look at the data first and readable errors."""

from __future__ import annotations

import argparse

from .start import add_run_options, run, with_local_rank


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Evaluate a checkpoint on the test set of a config.',
        epilog='Errors are one message; MOE_DET_TRACEBACK=1 in the environment shows where they come from.',
    )
    parser.add_argument('config', help="config file, a packaged config's name, or mmdet::... for one of mmdet's own")
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--work-dir', help='folder for metrics and logs (default: ./work_dirs/<config name>)')
    parser.add_argument('--out', metavar='FILE.pkl', help='save the predictions as a pickle')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='save painted images in <work-dir>/<time stamp>/SHOW_DIR')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show leaves an image open')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation: the config's own, else flips")
    add_run_options(parser, 'model.test_cfg.score_thr=0.1')
    args = parser.parse_args(argv)
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out {args.out}: expected a name that ends in .pkl or .pickle')
    return with_local_rank(args)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    return run('moe_det.running.launch:test', **vars(args))
