"""Whole detectors as experts: one trained on far and one on near scenes, a gate over both, their ensemble, each alone,
and one detector trained on all scenes.

    python benchmarks/mixture_of_detectors.py [--seeds 0 1 2] [--jobs N]

Every finished run is kept and an interrupted one goes on, so the command can be repeated, also with more seeds. The
record (benchmarks/records/mixture_of_detectors.json) and the page (docs/results/mixture_of_detectors.md) hold whatever
is finished. Runs of configs or images that have changed since then are left aside.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial

from common.options import add_files, add_runs, add_threads, folder, parser_of
from common.record import origin, publish, put_run, read, up_to_date
from common.runs import finished, make_shapes, threads_of
from whole_detectors.page import page
from whole_detectors.runs import about, fingerprint_of, measure
from whole_detectors.settings import DATA, EXPECTED, ROWS, SCENES

NAME = 'mixture_of_detectors'


def work(args: Namespace) -> None:
    """Trains and measures what is missing; writes record and page after each seed."""
    rows = up_to_date(
        read(args.record, {'rows': []})['rows'],
        lambda row: row['name'],
        lambda row: row['name'] in ROWS and row['fingerprint'] == fingerprint_of(row['name']),
    )
    for scenes in SCENES:
        make_shapes(args.data_root / scenes, args.work_dir / f'shapes_{scenes}.log', {**DATA, 'scenes': scenes})
    for (seed,), runs in finished(partial(measure, args=args), [(seed,) for seed in args.seeds], args.jobs):
        for name, run in runs.items():
            put_run(rows, {'name': name}, {'seed': seed, **run}, partial(about, name))
        rows.sort(key=lambda row: list(ROWS).index(row['name']))
        record = {**origin(f'python benchmarks/{NAME}.py'), 'data': DATA, 'expected': EXPECTED, 'rows': rows}
        publish(args, record, page(record))
        print(f'seed {seed}: ' + ', '.join(f'{name} {100 * run["AP"]:.1f}' for name, run in runs.items()), flush=True)


def main() -> None:
    """Works through the seeds."""
    parser = parser_of(__doc__)
    add_runs(parser, NAME)
    add_files(parser, NAME)
    parser.add_argument('--data-root', type=folder, default='data/scenes_of_two_scales')
    add_threads(parser)
    args = parser.parse_args()
    args.threads = threads_of(args.jobs, args.threads)
    work(args)


if __name__ == '__main__':
    main()
