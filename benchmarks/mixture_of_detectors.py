"""Whole detectors as experts: one trained on far and one on near scenes, a gate over both, their ensemble, each alone,
and one detector trained on all scenes.

    python benchmarks/mixture_of_detectors.py [--seeds 0 1 2] [--jobs N]

Every finished run is kept and an interrupted one goes on, so the command can be repeated, also with more seeds. The
record (benchmarks/records/mixture_of_detectors.json) and the page (docs/results/mixture_of_detectors.md) hold whatever
is finished. Runs of configs or images that have changed since then are left aside.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

from common.options import add_files, add_runs, parser_of
from common.record import origin, put_run, read, up_to_date, write
from common.runs import call, finished, threads_of
from whole_detectors.page import page
from whole_detectors.runs import cost_of, fingerprint_of, measure
from whole_detectors.settings import DATA, EXPECTED, ROWS, SCENES

NAME = 'mixture_of_detectors'


def work(args: Namespace) -> None:
    """Trains and measures what is missing; writes record and page after each seed."""
    record = read(args.record, {'rows': []})
    rows = up_to_date(
        record['rows'],
        lambda row: row['name'],
        lambda row: row['name'] in ROWS and row['fingerprint'] == fingerprint_of(row['name']),
        'recorded with another config',
    )
    for scenes in SCENES:
        options = [part for key, value in DATA.items() for part in (f'--{key}', str(value))]
        out = Path(args.data_root) / scenes
        make = [sys.executable, 'tools/misc/make_shapes.py', str(out), *options, '--scenes', scenes]
        call(make, Path(args.work_dir) / f'shapes_{scenes}.log')
    for (seed,), runs in finished(partial(measure, args=args), [(seed,) for seed in args.seeds], args.jobs):
        for name, run in runs.items():
            known = next((row for row in rows if row['name'] == name), None)
            new = {'name': name, 'fingerprint': fingerprint_of(name), **cost_of(name), 'seeds': []}
            put_run(rows, known or new, {'seed': seed, **run})
        rows.sort(key=lambda row: list(ROWS).index(row['name']))
        record = {**origin(f'python benchmarks/{NAME}.py'), 'data': DATA, 'expected': EXPECTED, 'rows': rows}
        write(args.record, record)
        write(args.page, page(record))
        print(f'seed {seed}: ' + ', '.join(f'{name} {100 * run["AP"]:.1f}' for name, run in runs.items()), flush=True)


def main() -> None:
    """Works through the seeds."""
    parser = parser_of(__doc__)
    add_runs(parser, NAME)
    add_files(parser, NAME)
    parser.add_argument('--data-root', default='data/scenes_of_two_scales')
    parser.add_argument('--threads', type=int, help='threads of each run (default: the cores, shared by the jobs)')
    args = parser.parse_args()
    args.threads = args.threads or threads_of(args.jobs)
    args.work_dir, args.data_root = str(Path(args.work_dir).resolve()), str(Path(args.data_root).resolve())
    work(args)


if __name__ == '__main__':
    main()
