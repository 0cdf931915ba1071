"""Whether experts pay: mixtures that start from a trained detector, cost as much, and train on, beside the detector
that trains on without experts.

    python benchmarks/experts_that_pay.py [--rows NAME ...] [--seeds 0 1 2] [--jobs N]

Every finished run is kept and an interrupted one goes on, so the command can be repeated, also with more rows or
seeds. The record (benchmarks/records/experts_that_pay.json) and the page (docs/results/experts_that_pay.md) hold
whatever is finished. Runs of configs or images that have changed since then are left aside.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import README, RECORDS, RESULTS
from common.options import add_runs, parser_of
from common.page import fill
from common.record import origin, put_run, read, up_to_date, write
from common.runs import call, finished, threads_of
from pay.expected import EXPECTED
from pay.page import page
from pay.readme import NAME, results
from pay.runs import cost_of, fingerprint_of, measure
from pay.settings import DATA, MORE_EPOCHS, MORE_RATE, ROWS, START_EPOCHS, START_RATE, STARTS
from pay.times import timed, times_over_dense

RECORD = RECORDS / 'experts_that_pay.json'
PAGE = RESULTS / 'experts_that_pay.md'
FORMAT = 1


def main() -> None:
    """Works through rows and seeds and writes the record after each run."""
    names = [*STARTS, *ROWS]
    parser = parser_of(__doc__)
    parser.add_argument('--rows', nargs='+', default=names, choices=names, metavar='NAME', help='default: all')
    add_runs(parser, 'experts_that_pay')
    parser.add_argument('--data-root', default='data/kinds')
    parser.add_argument('--threads', type=int, help='threads of each run (default: the cores, shared by the jobs)')
    parser.add_argument('--no-swap', action='store_true', help='leave the swap test out')
    parser.add_argument('--times', action='store_true', help='train nothing: time finished rows, on a quiet machine')
    args = parser.parse_args()
    args.threads = args.threads or threads_of(args.jobs)
    args.work_dir = str(Path(args.work_dir).resolve())
    args.data_root = str(Path(args.data_root).resolve())
    options = [part for key, value in DATA.items() for part in (f'--{key}', str(value))]
    make = [sys.executable, 'tools/misc/make_shapes.py', args.data_root, *options]
    call(make, Path(args.work_dir) / 'shapes.log')
    record = read(RECORD, {'rows': []})
    drop_outdated(record)
    if args.times:
        rows = {row['name']: row for row in record['rows']}
        for name, times in times_over_dense(timed([n for n in args.rows if n in rows], args), args).items():
            rows[name]['time_over_dense'] = times
        keep(record)
        return
    # starts first: what goes on from them would else train the same one twice
    for wanted in ([name for name in args.rows if name in STARTS], [name for name in args.rows if name in ROWS]):
        tasks = [(name, seed, args) for seed in args.seeds for name in wanted]
        for (name, seed, _), run in finished(measure, tasks, args.jobs):
            add(record, name, run)
            keep(record)
            print(f'{name}, seed {seed}: AP {100 * run["AP"]:.1f}', flush=True)


def drop_outdated(record: dict) -> None:
    """Removes rows that were trained in another way, and says so."""

    def as_today(row: dict) -> bool:
        known = row['name'] in STARTS or row['name'] in ROWS
        return known and row['fingerprint'] == fingerprint_of(row['name']) and record.get('format') == FORMAT

    otherwise = 'recorded with another config'
    record['rows'] = up_to_date(record['rows'], lambda row: row['name'], as_today, otherwise)


def add(record: dict, name: str, run: dict) -> None:
    """Puts a run into the record, in place of one of the same row and seed, whose swap test stays if it has none."""
    row = next((row for row in record['rows'] if row['name'] == name), None)
    if row is None:
        control = name in STARTS or ROWS[name].control
        row = {'name': name, 'control': control, 'fingerprint': fingerprint_of(name), **cost_of(name), 'seeds': []}
    put_run(record['rows'], row, run)
    order = [*STARTS, *ROWS]
    record['rows'].sort(key=lambda one: order.index(one['name']))


def keep(record: dict) -> None:
    """Writes the record, the page and README's table."""
    record |= {
        'format': FORMAT,
        **origin('python benchmarks/experts_that_pay.py'),
        'data': DATA,
        'schedule': {
            'start': {'epochs': START_EPOCHS, 'learning_rate': START_RATE},
            'more': {'epochs': MORE_EPOCHS, 'learning_rate': MORE_RATE},
        },
        'expected': EXPECTED,
    }
    write(RECORD, record)
    write(PAGE, page(record))
    write(README, fill(README.read_text(encoding='utf-8'), NAME, results(record)))


if __name__ == '__main__':
    main()
