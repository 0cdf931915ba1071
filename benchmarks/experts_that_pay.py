"""Whether experts pay: mixtures that start from a trained detector, cost as much, and train on, beside the detector
that trains on without experts.

    python benchmarks/experts_that_pay.py [--rows NAME ...] [--seeds 0 1 2] [--jobs N]

Every finished run is kept and an interrupted one goes on, so the command can be repeated, also with more rows or
seeds. The record (benchmarks/records/experts_that_pay.json) and the page (docs/results/experts_that_pay.md) hold
whatever is finished. Runs of configs or images that have changed since then are left aside.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

from command_runs import ROOT, call, finished, threads_of  # beside this script
from pay.expected import EXPECTED
from pay.page import page
from pay.readme import NAME, results
from pay.runs import cost_of, fingerprint_of, measure
from pay.settings import DATA, MORE_EPOCHS, MORE_RATE, ROWS, START_EPOCHS, START_RATE, STARTS
from pay.times import timed, times_over_dense
from speed.marks import fill

RECORD = ROOT / 'benchmarks' / 'records' / 'experts_that_pay.json'
README = ROOT / 'README.md'
PAGE = ROOT / 'docs' / 'results' / 'experts_that_pay.md'
FORMAT = 1


def main() -> None:
    """Works through rows and seeds and writes the record after each run."""
    names = [*STARTS, *ROWS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', nargs='+', default=names, choices=names, metavar='NAME', help='default: all')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--data-root', default='data/kinds')
    parser.add_argument('--work-dir', default='work_dirs/experts_that_pay')
    parser.add_argument('--jobs', type=int, default=1, help='runs at the same time, which share the cores')
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
    record = json.loads(RECORD.read_text(encoding='utf-8')) if RECORD.is_file() else {'rows': []}
    drop_outdated(record)
    if args.times:
        rows = {row['name']: row for row in record['rows']}
        for name, times in times_over_dense(timed([n for n in args.rows if n in rows], args), args).items():
            rows[name]['time_over_dense'] = times
        write(record)
        return
    # starts first: what goes on from them would else train the same one twice
    for wanted in ([name for name in args.rows if name in STARTS], [name for name in args.rows if name in ROWS]):
        tasks = [(name, seed, args) for seed in args.seeds for name in wanted]
        for (name, seed, _), run in finished(measure, tasks, args.jobs):
            add(record, name, run)
            write(record)
            print(f'{name}, seed {seed}: AP {100 * run["AP"]:.1f}', flush=True)


def drop_outdated(record: dict) -> None:
    """Removes rows that were trained in another way, and says so."""
    kept = []
    for row in record['rows']:
        known = row['name'] in STARTS or row['name'] in ROWS
        if known and row['fingerprint'] == fingerprint_of(row['name']) and record.get('format') == FORMAT:
            kept.append(row)
        else:
            print(f'{row["name"]}: recorded with another config, not kept', flush=True)
    record['rows'] = kept


def add(record: dict, name: str, run: dict) -> None:
    """Puts a run into the record, in place of one of the same row and seed, whose swap test stays if it has none."""
    row = next((row for row in record['rows'] if row['name'] == name), None)
    if row is None:
        control = name in STARTS or ROWS[name].control
        row = {'name': name, 'control': control, 'fingerprint': fingerprint_of(name), **cost_of(name), 'seeds': []}
        record['rows'].append(row)
    runs = {other['seed']: other for other in row['seeds']}
    runs[run['seed']] = {**runs.get(run['seed'], {}), **run}
    row['seeds'] = [runs[seed] for seed in sorted(runs)]
    order = [*STARTS, *ROWS]
    record['rows'].sort(key=lambda one: order.index(one['name']))


def write(record: dict) -> None:
    """Writes the record, the page and README's table."""
    from moe_det.common.software import machine, versions  # imports torch

    record |= {
        'format': FORMAT,
        'command': 'python benchmarks/experts_that_pay.py',
        'machine': machine(),
        'versions': versions(),
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d'),
        'data': DATA,
        'schedule': {
            'start': {'epochs': START_EPOCHS, 'learning_rate': START_RATE},
            'more': {'epochs': MORE_EPOCHS, 'learning_rate': MORE_RATE},
        },
        'expected': EXPECTED,
    }
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
    PAGE.write_text(page(record), encoding='utf-8')
    README.write_text(fill(README.read_text(encoding='utf-8'), NAME, results(record)), encoding='utf-8')


if __name__ == '__main__':
    main()
