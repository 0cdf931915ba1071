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
from statistics import fmean

from common.options import add_data_sets, add_files, at_least, command_of, folder, parser_of
from common.page import bullets, dates, origins, spread, table
from common.record import Runs
from mixtures.published import DATA_SETS

EPOCHS = 20  # as published
EXPERTS = [1, 2, 3, 5, 7, 10, 15, 20]
SHARES = [5.0, 10.0, 20.0, 40.0, 100.0]  # as published
KEYS = ('data_set', 'experts', 'share', 'epochs', 'seed')
INTRODUCTION = """# More data, more experts?

An autoencoder with a gate and E decoders, without labels, on growing parts of a data set (SMoE-VAE,
[arXiv 2509.10025](https://arxiv.org/abs/2509.10025), there on QuickDraw, where the best number of decoders in use grows
with the data). A cell is the squared error of a test image, summed over its pixels, drawn by the decoder with the
largest probability, and in brackets the number of decoders in use, those of more than one test image in a hundred;
below it the error of all decoders mixed by the gate, as in training, from which one alone is far as long as the gate
does not decide. Means over seeds, ± standard deviation (n − 1). Settings as published but for the data and the number
of epochs (`configs/classification/_base_/mixture_vae.py`).
"""

# written down before the runs, but for the first sentence
EXPECTED = [
    'Known from a trial of one seed with five epochs and 5 % of Fashion-MNIST: one decoder has an error of 18.6, ten '
    'have 44.0.',
    'With five epochs one decoder stays best for every part of the data: what each of several decoders sees is a part, '
    'and none has been trained to its end. The distance shrinks with the data, which also means more steps.',
    'With the published twenty epochs the best number in use grows from 1 for 5 % to about 3 for all data.',
]


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
    add_data_sets(parser)
    parser.add_argument('--data-sets', nargs='+', choices=list(DATA_SETS), default=['fashion_mnist'])
    parser.add_argument('--experts', nargs='+', type=at_least(1), default=EXPERTS, metavar='E')
    parser.add_argument('--shares', nargs='+', type=percent, default=SHARES, metavar='PERCENT')
    parser.add_argument('--epochs', type=at_least(1), default=EPOCHS, help='default: %(default)s, as published')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--work-dir', type=folder, default='work_dirs/experts_and_data')
    add_files(parser, 'experts_and_data')
    args = parser.parse_args(argv)
    args.command = command_of(
        'experts_and_data.py', args, parser, ('data_sets', 'experts', 'shares', 'epochs', 'seeds')
    )
    return args


def best_by_active(runs: list[dict]) -> tuple[int, float]:
    """The number of decoders in use whose runs have the lowest mean error, and that error."""
    by_active: dict[int, list[float]] = {}
    for run in runs:
        by_active.setdefault(int(run['active_experts']), []).append(run['squared_error'])
    return min(((active, fmean(errors)) for active, errors in by_active.items()), key=lambda pair: pair[1])


def page(runs: list[dict]) -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for epochs, data_set in sorted({(run['epochs'], run['data_set']) for run in runs}):
        chosen = [run for run in runs if (run['epochs'], run['data_set']) == (epochs, data_set)]
        parts.append(f'## {DATA_SETS[data_set]}, {epochs} epochs\n')
        experts = sorted({run['experts'] for run in chosen})
        rows = []
        for share in sorted({run['share'] for run in chosen}):
            of_share = [run for run in chosen if run['share'] == share]
            cells, mixed = [], []
            for number in experts:
                cell = [run for run in of_share if run['experts'] == number]
                active = f' ({fmean(run["active_experts"] for run in cell):.1f})' if cell else ''
                cells.append(spread([run['squared_error'] for run in cell]) + active)
                mixed.append(spread([run['squared_error_of_all'] for run in cell]))
            best, error = best_by_active(of_share)
            rows += [[f'{share:g} %', *cells, f'{best} ({error:.2f})'], [f'{share:g} %, all mixed', *mixed, '']]
        heads = ['training images', *(f'E = {number}' for number in experts), 'best number in use']
        parts += ['\n'.join(table(heads, rows)), '']
    parts += ['## Expected before the runs\n', *bullets(EXPECTED), '']
    for (machine, versions, command), of_origin in origins(runs).items():
        parts.append(f'{len(of_origin)} runs, {dates(of_origin)}: {machine}; {versions}.\n\n    {command}\n')
    return '\n'.join(parts)


def identity(run: dict) -> tuple:
    """What tells a run from the others."""
    return tuple(run[key] for key in KEYS)


def work(args: argparse.Namespace) -> None:
    """Trains what is missing, and writes record and page after each run."""
    from mixtures.autoencoders import Setting, trained

    def as_today(run: dict) -> bool:
        return run.get('fingerprint') == Setting(**{key: run[key] for key in KEYS}).digest

    runs = Runs(args, identity, '{data_set}, {experts} experts, {share:g} %'.format_map, as_today, page)
    settings = [
        Setting(data_set, experts, share, args.epochs, seed)
        for seed in args.seeds
        for data_set in args.data_sets
        for share in args.shares
        for experts in args.experts
    ]
    for setting in settings:
        if identity(vars(setting)) in runs.known:
            continue
        run = trained(setting, args.data_root, args.work_dir, args.command)
        runs.add(run)
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
