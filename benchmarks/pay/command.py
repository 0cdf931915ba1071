"""The command of a table of continued detectors: works through rows and seeds, and writes the record after each run."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from common.options import add_files, add_runs
from common.record import origin, put_run, read, up_to_date, write
from common.runs import call, finished, threads_of

from .runs import clusters_of, cost_of, fingerprint_of, measure
from .settings import DATA, MORE_EPOCHS, MORE_RATE, START_EPOCHS, START_RATE
from .table import Table
from .times import timed, times_over_dense

FORMAT = 1
RUNS = 'experts_that_pay'  # the folder of the runs: whatever tables have in common is trained once


@dataclass
class Work:
    """A benchmark and its record.

    Attributes:
        name: of script, record and page.
        table: what is trained.
        page: record -> the page.
        expected: what was expected of the runs.
        written: what else is written from a record; (record, args) after each run.
        record: what is finished.
    """

    name: str
    table: Table
    page: Callable[[dict], str]
    expected: Sequence[str]
    written: Callable[[dict, Namespace], None] = lambda record, args: None
    record: dict = field(default_factory=lambda: {'rows': []})

    def options(self, parser: ArgumentParser) -> ArgumentParser:
        """Adds the options of all tables."""
        names = self.table.names
        parser.add_argument('--rows', nargs='+', default=names, choices=names, metavar='NAME', help='default: all')
        add_runs(parser, RUNS)
        add_files(parser, self.name)
        parser.add_argument('--data-root', default='data/kinds')
        parser.add_argument('--threads', type=int, help='threads of each run (default: the cores, shared by the jobs)')
        parser.add_argument('--no-swap', action='store_true', help='leave the swap test out')
        parser.add_argument(
            '--times', action='store_true', help='train nothing: time finished rows, on a quiet machine'
        )
        return parser

    def run(self, args: Namespace) -> None:
        """Trains and measures what is missing, or times what is finished."""
        args.threads = args.threads or threads_of(args.jobs)
        args.work_dir = str(Path(args.work_dir).resolve())
        args.data_root = str(Path(args.data_root).resolve())
        options = [part for key, value in DATA.items() for part in (f'--{key}', str(value))]
        make = [sys.executable, 'tools/misc/make_shapes.py', args.data_root, *options]
        call(make, Path(args.work_dir) / 'shapes.log')
        self.record = read(args.record, {'rows': []})
        self.drop_outdated()
        if args.times:
            self.time(args)
            return
        starts = [name for name in args.rows if name in self.table.starts]
        # starts first: what goes on from them would else train the same one twice
        for wanted in (starts, [name for name in args.rows if name not in starts]):
            tasks = [(name, seed, args) for seed in args.seeds for name in wanted]
            for (name, seed, _), run in finished(partial(measure, self.table), tasks, args.jobs):
                self.add(name, run, args)
                self.keep(args)
                print(f'{name}, seed {seed}: AP {100 * run["AP"]:.1f}', flush=True)

    def time(self, args: Namespace) -> None:
        """Times what is finished."""
        rows = {row['name']: row for row in self.record['rows']}
        names = timed(self.table, [name for name in args.rows if name in rows], args)
        for name, times in times_over_dense(self.table, names, args).items():
            rows[name]['time_over_dense'] = times
        self.keep(args)

    def drop_outdated(self) -> None:
        """Removes rows that were trained in another way, and says so."""
        is_known = self.record.get('format') == FORMAT

        def as_today(row: dict) -> bool:
            name = row['name']
            return is_known and name in self.table.names and row['fingerprint'] == fingerprint_of(self.table, name)

        otherwise = 'recorded with another config'
        self.record['rows'] = up_to_date(self.record['rows'], lambda row: row['name'], as_today, otherwise)

    def add(self, name: str, run: dict, args: Namespace) -> None:
        """Puts a run into the record, in place of one of the same row and seed, of which stays what it lacks."""
        rows = self.record['rows']
        row = next((row for row in rows if row['name'] == name), None)
        if row is None:
            control, digest = self.table[name].control, fingerprint_of(self.table, name)
            cost = cost_of(self.table, name, clusters_of(self.table, name, run['seed'], args))
            row = {'name': name, 'control': control, 'fingerprint': digest, **cost, 'seeds': []}
        put_run(rows, row, run)
        rows.sort(key=lambda one: self.table.names.index(one['name']))

    def keep(self, args: Namespace) -> None:
        """Writes the record, the page and whatever else shows the record."""
        self.record |= {
            'format': FORMAT,
            **origin(f'python benchmarks/{self.name}.py'),
            'data': DATA,
            'schedule': {
                'start': {'epochs': START_EPOCHS, 'learning_rate': START_RATE},
                'more': {'epochs': MORE_EPOCHS, 'learning_rate': MORE_RATE},
            },
            'expected': list(self.expected),
        }
        write(args.record, self.record)
        write(args.page, self.page(self.record))
        self.written(self.record, args)
