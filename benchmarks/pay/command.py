"""The command of a table of continued detectors: works through rows and seeds, and writes the record after each run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from common.options import add_files, add_runs, add_threads, folder
from common.record import origin, publish, put_run, read, up_to_date
from common.runs import finished, make_shapes, threads_of

from .runs import clusters_of, cost_of, fingerprint_of, measure
from .settings import DATA, MORE_EPOCHS, MORE_RATE, START_EPOCHS, START_RATE, Table
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
        shown: record -> README's part.
        record: what is finished.
    """

    name: str
    table: Table
    page: Callable[[dict], str]
    expected: Sequence[str]
    shown: Callable[[dict], str] = lambda record: ''
    record: dict = field(default_factory=lambda: {'rows': []})

    def options(self, parser: ArgumentParser) -> ArgumentParser:
        """Adds the options of all tables."""
        names = self.table.names
        parser.add_argument('--rows', nargs='+', default=names, choices=names, metavar='NAME', help='default: all')
        add_runs(parser, RUNS)
        add_files(parser, self.name)
        parser.add_argument('--data-root', type=folder, default='data/kinds')
        add_threads(parser)
        parser.add_argument('--no-swap', action='store_true', help='leave the swap test out')
        parser.add_argument(
            '--times', action='store_true', help='train nothing: time finished rows, on a quiet machine'
        )
        return parser

    def run(self, args: Namespace) -> None:
        """Trains and measures what is missing, or times what is finished."""
        args.threads = threads_of(args.jobs, args.threads)
        make_shapes(args.data_root, args.work_dir / 'shapes.log', DATA)
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
        for name, times in times_over_dense(self.table, names, args):
            rows[name]['time_over_dense'] = times
            self.keep(args)

    def drop_outdated(self) -> None:
        """Removes rows that were trained in another way, and says so."""
        is_known = self.record.get('format') == FORMAT

        def as_today(row: dict) -> bool:
            name = row['name']
            return is_known and name in self.table.names and row['fingerprint'] == fingerprint_of(self.table, name)

        self.record['rows'] = up_to_date(self.record['rows'], lambda row: row['name'], as_today)

    def add(self, name: str, run: dict, args: Namespace) -> None:
        """Puts a run into the record, in place of one of the same row and seed, of which stays what it lacks."""

        def about() -> dict:
            cost = cost_of(self.table, name, clusters_of(self.table, name, run['seed'], args))
            return {'control': self.table[name].control, 'fingerprint': fingerprint_of(self.table, name), **cost}

        put_run(self.record['rows'], {'name': name}, run, about)
        self.record['rows'].sort(key=lambda one: self.table.names.index(one['name']))

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
        publish(args, self.record, self.page(self.record), self.name, self.shown(self.record))
