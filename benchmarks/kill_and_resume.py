"""Kills a training with SIGKILL at random instants and resumes it, as often as asked.

A small detector with experts trains on synthetic shapes through tools/train.py and saves after every iteration. Each
process is killed while it starts, while it trains, or while it writes a checkpoint (in half of the runs the write
is slowed down, so that many kills hit it). The next process of the run must go on from the checkpoint that was noted
last, and the run must end with exactly the weights, optimizer, schedules and losses of a run that nobody killed.

    python benchmarks/kill_and_resume.py               # 200 kills; the same command goes on if it was interrupted
    python benchmarks/kill_and_resume.py --kills 6 --out trial.json

Python starts once: the processes that are killed are forks of this one.
"""

from __future__ import annotations

import os
import platform
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch: forks of a process with threads may hang

import mmengine.config.config
import mmengine.runner.runner
import torch
from common import RECORDS, ROOT
from common.options import json_file, parser_of
from common.page import table
from common.record import origin, read, write
from kills.runs import killed_run, uninterrupted
from yapf.yapflib import yapf_api

from moe_det.datasets.shapes import ShapesSettings, make_shapes
from moe_det.running import launch  # noqa: F401  launch: imported once for all forks

RECORD = RECORDS / 'kill_and_resume.json'
PER_EPOCH, BATCH = 6, 2
VARIANTS = [  # constraint, data workers, slow writes
    ('RelativeImportanceConstraint', 2, True),
    ('KLConstraint', 0, False),
    ('RelativeImportanceConstraint', 0, False),
    ('KLConstraint', 2, True),
]
CONFIG = """
_base_ = {base!r}
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1,
                   moe=dict(constraint=dict(_delete_=True, type={constraint!r}))))
train_dataloader = dict(batch_size={batch}, num_workers={workers}, persistent_workers={workers} > 0)
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs={epochs}, val_interval=1)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, T_max=20)]
default_hooks = dict(logger=dict(interval=4), checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts=3))
"""


def write_config(folder: Path, constraint: str, workers: int, epochs: int) -> Path:
    """Writes the config of one variant."""
    path = folder / f'{constraint}_{workers}.py'
    base = str(ROOT / 'configs' / 'shapes' / 'retinanet_moe_soft.py')
    values = dict(base=base, constraint=constraint, workers=workers, batch=BATCH, epochs=epochs)
    path.write_text(CONFIG.format(**values))
    return path


def summary(record: dict) -> str:
    """The record as a page."""
    kills = [kill for run in record['runs'] for kill in run['kills']]
    places = Counter(kill['place'] for kill in kills)
    starts = sum(kill['aim'] == 'start' for kill in kills)
    equal = sum(run['equal'] for run in record['runs'])
    resumed = sum(kill['resumed'] for kill in kills)
    lines = [
        '# Kill and resume',
        '',
        f'{len(kills)} kills in {len(record["runs"])} runs of {record["iterations"]} iterations, '
        f'`{record["command"]}`, {record["seconds"]:.0f} s on {record["machine"]}, {record["versions"]}, '
        f'{record["date"]}.',
        '',
        *table(
            ['', ''],
            [
                ['kills after which the run went on from the last checkpoint noted', f'{resumed} of {len(kills)}'],
                ['runs that ended bit for bit as the uninterrupted one', f'{equal} of {len(record["runs"])}'],
                ['kills while the process started', starts],
                ['kills within the write of a checkpoint', places['within a checkpoint write']],
                ['kills between a checkpoint and the note of it', places['between checkpoint and note']],
                ['problems', sum(len(run['problems']) for run in record['runs'])],
            ],
        ),
        '',
        'Compared at the end: weights, optimizer, schedules, history of losses and learning rates. Half of the runs',
        'have a hard constraint, half two data workers (the run to compare with has none), half slowed-down writes.',
        '',
    ]
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 if every kill was survived and every run ended as it should."""
    parser = parser_of(__doc__)
    parser.add_argument('--kills', type=int, default=200, metavar='N', help='default: %(default)s')
    parser.add_argument('--kills-per-run', type=int, default=6, metavar='N', help='default: %(default)s')
    parser.add_argument('--epochs', type=int, default=2, help='of a run (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the instants (default: %(default)s)')
    parser.add_argument('--out', type=json_file, default=RECORD, help='the record, a .json; a .md page goes beside it')
    args = parser.parse_args(argv)
    versions = f'Python {platform.python_version()}, torch {torch.__version__}, mmengine {mmengine.__version__}'
    record = dict(runs=[], seconds=0.0, seed=args.seed, iterations=PER_EPOCH * args.epochs)
    earlier = read(args.out, {})
    if [earlier.get(key) for key in ('seed', 'iterations', 'versions')] == [args.seed, record['iterations'], versions]:
        record = earlier
    command = shlex.join(['python', 'benchmarks/kill_and_resume.py', *(sys.argv[1:] if argv is None else argv)])
    record |= origin(command) | dict(versions=versions)

    # both are slow and of no use here: the list of packages in the log, and a pretty config in each checkpoint
    mmengine.runner.runner.collect_env = dict
    # mmengine 0.10.7 imports the formatter by name, 0.10.12 at each use
    yapf_api.FormatCode = mmengine.config.config.FormatCode = lambda text, **settings: (text, True)
    with tempfile.TemporaryDirectory(prefix='kill_and_resume_') as folder:
        folder = Path(folder)
        data = folder / 'data'
        make_shapes(data, ShapesSettings(BATCH * PER_EPOCH, 4, 64, 0, 0.4))
        references: dict[str, dict] = {}
        while (done := sum(len(run['kills']) for run in record['runs'])) < args.kills:
            begin = time.monotonic()
            number = len(record['runs'])
            constraint, workers, slow = VARIANTS[number % len(VARIANTS)]
            if constraint not in references:
                config = write_config(folder, constraint, 0, args.epochs)
                references[constraint] = uninterrupted(config, data, folder / f'{constraint}_whole')
            config = write_config(folder, constraint, workers, args.epochs)
            rng = random.Random(f'{args.seed}/{number}')
            most = min(args.kills_per_run, args.kills - done)
            run = killed_run(config, data, folder / f'run_{number}', references[constraint], slow, rng, most)
            record['runs'].append(dict(constraint=constraint, workers=workers, slow=slow, **run))
            record['seconds'] += time.monotonic() - begin
            write(args.out, record)
            write(args.out.with_suffix('.md'), summary(record))
            inside = sum(kill['place'] == 'within a checkpoint write' for kill in run['kills'])
            print(
                f'run {number}: {len(run["kills"])} kills, {inside} within a checkpoint write, '
                f'{"equal" if run["equal"] else "DIFFERENT"} {"; ".join(run["problems"])}',
                flush=True,
            )
            if not run['kills'] and not run['equal']:
                break
    good = all(run['equal'] and not run['problems'] for run in record['runs'])
    good &= all(kill['resumed'] for run in record['runs'] for kill in run['kills'])
    print(summary(record))
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
