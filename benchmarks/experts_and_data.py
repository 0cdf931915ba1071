"""How many experts pay for how much data: autoencoders with E decoders on parts of MNIST and Fashion-MNIST.

    python benchmarks/experts_and_data.py --data-root DIR [--data-sets fashion_mnist] [--seeds 0 1 2]
    python benchmarks/experts_and_data.py --data-root DIR --experts 1 5 10 --shares 5 100 --epochs 5

The sweep of arXiv 2509.10025, on other data. Works seed by seed, in one process. What the record has is not trained
again, unless the config has changed: the command can be repeated after an interruption (Ctrl-C), also with more numbers
or seeds. The record, benchmarks/records/experts_and_data.json, and the page, docs/results/experts_and_data.md, hold
whatever is finished; runs of another number of epochs stand apart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.options import add_files, at_least, command_of, parser_of
from common.record import read, up_to_date, write
from experts_data.page import DATA_SETS, page

EPOCHS = 20  # as published
EXPERTS = [1, 2, 3, 5, 7, 10, 15, 20]
SHARES = [5.0, 10.0, 20.0, 40.0, 100.0]  # as published
KEYS = ('data_set', 'experts', 'share', 'epochs', 'seed')


def percent(text: str) -> float:
    """The type of an option that takes a share above 0 and up to 100."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f'{text}: expected a percentage above 0 and up to 100')
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__)
    parser.add_argument('--data-root', metavar='DIR', help="folder of the data sets (default: the configs' own)")
    parser.add_argument('--data-sets', nargs='+', choices=list(DATA_SETS), default=['fashion_mnist'])
    parser.add_argument('--experts', nargs='+', type=at_least(1), default=EXPERTS, metavar='E')
    parser.add_argument('--shares', nargs='+', type=percent, default=SHARES, metavar='PERCENT')
    parser.add_argument('--epochs', type=at_least(1), default=EPOCHS, help='default: %(default)s, as published')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--work-dir', default='work_dirs/experts_and_data')
    add_files(parser, 'experts_and_data')
    args = parser.parse_args(argv)
    args.command = command_of(
        'experts_and_data.py', args, parser, ('data_sets', 'experts', 'shares', 'epochs', 'seeds')
    )
    return args


def identity(run: dict) -> tuple:
    """What tells a run from the others."""
    return tuple(run[key] for key in KEYS)


def work(args: argparse.Namespace) -> None:
    """Trains what is missing, and writes record and page after each run."""
    from experts_data.runs import Setting, trained

    def as_today(run: dict) -> bool:
        return run.get('fingerprint') == Setting(**{key: run[key] for key in KEYS}).digest

    found = up_to_date(
        read(args.record, {'runs': []})['runs'],
        lambda run: '{data_set}, {experts} experts, {share:g} %'.format(**run),
        as_today,
        'recorded with another config',
    )
    runs = {identity(run): run for run in found}
    settings = [
        Setting(data_set, experts, share, args.epochs, seed)
        for seed in args.seeds
        for data_set in args.data_sets
        for share in args.shares
        for experts in args.experts
    ]
    for setting in settings:
        if identity(vars(setting)) in runs:
            continue
        run = trained(setting, args.data_root, Path(args.work_dir).resolve(), args.command)
        runs[identity(run)] = run
        ordered = [runs[key] for key in sorted(runs)]
        write(args.record, {'runs': ordered})
        write(args.page, page(ordered))
        name = f'{DATA_SETS[setting.data_set]}, {setting.share:g} %, {setting.experts} experts, seed {setting.seed}'
        measured = f'error {run["squared_error"]:.2f}, {run["active_experts"]:.0f} in use ({run["seconds"]:.0f} s)'
        print(f'{name}: {measured}', flush=True)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv)
    from moe_det.running.user_errors import run_main

    return run_main(lambda: work(args))


if __name__ == '__main__':
    sys.exit(main())
