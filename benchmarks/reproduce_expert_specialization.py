"""The MNIST and Fashion-MNIST tables of arXiv 2302.14703: trains their rows over seeds, sets ours beside the published.

    python benchmarks/reproduce_expert_specialization.py --data-root DIR [--seeds 0 1 2 3 4]
    python benchmarks/reproduce_expert_specialization.py --data-root DIR --rows original attentive --data-sets mnist

Works seed by seed over all rows, in one process or, with --jobs, in several that share the cores. What the record has
is not trained again, unless the row's config has changed: the command can be repeated after an interruption (Ctrl-C),
also with more rows or seeds. The record, benchmarks/records/expert_specialization.json, and the page,
docs/results/expert_specialization.md, hold whatever is finished; runs of another number of epochs than published stand
apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from common.options import add_data_sets, add_files, add_runs, at_least, command_of, parser_of
from common.record import Runs
from mixtures.page import EPOCHS, ROWS, TWENTY, by_row, page, targets
from mixtures.published import DATA_SETS

ALL_ROWS = [*ROWS, *TWENTY]


def identity(run: dict) -> tuple:
    """What tells a run from the others, in the order of the tables."""
    return run['epochs'], list(DATA_SETS).index(run['data_set']), ALL_ROWS.index(run['row']), run['seed']


def name_of(run: dict) -> str:
    """A run without its seed, for the user."""
    return f'{DATA_SETS[run["data_set"]]}, {run["row"]}'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__)
    add_data_sets(parser)
    parser.add_argument('--data-sets', nargs='+', choices=list(DATA_SETS), default=list(DATA_SETS))
    rows = ', '.join(ALL_ROWS)
    parser.add_argument('--rows', nargs='+', choices=ALL_ROWS, default=ALL_ROWS, metavar='ROW', help=rows)
    add_runs(parser, 'expert_specialization', range(5))
    parser.add_argument('--epochs', type=at_least(1), default=EPOCHS, help='default: %(default)s, as published')
    add_files(parser, 'expert_specialization')
    args = parser.parse_args(argv)
    keys = ('data_sets', 'rows', 'seeds', 'epochs', 'jobs')
    args.command = command_of('reproduce_expert_specialization.py', args, parser, keys)
    return args


def chains(args: argparse.Namespace, finished: Collection[tuple] = ()) -> list[tuple[str, list[str], int]]:
    """Data set, rows and seed of what one process works through: rows that start from one another stay together."""
    from mixtures.runs import SOURCES

    found = []
    for seed in args.seeds:
        for data_set in args.data_sets:
            for row in (row for row in ALL_ROWS if row in args.rows):
                if identity({'epochs': args.epochs, 'data_set': data_set, 'row': row, 'seed': seed}) in finished:
                    continue
                source, changes = SOURCES.get((data_set, row), (None, None))
                before = [] if changes else [chain for chain in found if chain[::2] == (data_set, seed)]
                chain = next((chain for chain in before if source in chain[1]), None)
                if chain is None:
                    found.append((data_set, [row], seed))
                else:
                    chain[1].append(row)
    return found


def trained(args: argparse.Namespace, finished: Collection[tuple]) -> Iterator[dict]:
    """Results of all runs that are not finished, each as soon as its chain is done.

    Raises:
        MoEDetError: a process died.
    """
    from mixtures.runs import Bench, start_worker, train_chain

    from moe_det.errors import MoEDetError

    bench = Bench(args.data_root, args.work_dir, args.epochs, args.command)
    if args.jobs == 1:
        for data_set, rows, seed in chains(args, finished):
            yield from (bench.row(data_set, row, seed) for row in rows)
        return
    pool = ProcessPoolExecutor(args.jobs, get_context('spawn'), start_worker, (args.jobs,))
    try:
        futures = [pool.submit(train_chain, bench, *chain) for chain in chains(args, finished)]
        for future in as_completed(futures):
            yield from future.result()
    except BrokenProcessPool:
        raise MoEDetError(
            f'a training process died, killed perhaps for want of memory: try fewer than --jobs {args.jobs}. '
            'What is finished is kept, the same command goes on.'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def work(args: argparse.Namespace) -> None:
    """Works through seeds, data sets and rows, and writes record and page after each run."""
    from mixtures.runs import fingerprint_of

    def as_today(run: dict) -> bool:
        return run.get('fingerprint') == fingerprint_of(run['data_set'], run['row'])

    runs = Runs(args, identity, name_of, as_today, page)
    try:
        for run in trained(args, set(runs.known)):
            runs.add(run)
            measured = ', '.join(
                f'{key.removeprefix("test_")} {run[key]:.3f}'
                for key in ('train_error', 'test_error', 'test_I_EY', 'test_H_s', 'test_H_u')
                if run[key] is not None
            )
            took = f'{run["seconds"]:.0f} s, processor {run["cpu_seconds"]:.0f} s'
            print(f'{name_of(run)}, seed {run["seed"]}: {measured} ({took})', flush=True)
    except KeyboardInterrupt:
        told = f'{len(runs.known)} runs are recorded in {args.record}; the same command goes on.'
        raise KeyboardInterrupt(told) from None
    for text, verdict in targets(by_row([run for run in runs.known.values() if run['epochs'] == EPOCHS])):
        print(f'{text}: {verdict}')


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv)
    from moe_det.running.user_errors import run_main

    return run_main(lambda: work(args))


if __name__ == '__main__':
    sys.exit(main())
