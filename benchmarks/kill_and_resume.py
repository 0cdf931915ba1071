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

import argparse
import importlib.util
import json
import os
import platform
import random
import shlex
import signal
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch: forks of a process with threads may hang

import mmengine.config.config
import mmengine.runner.runner
import torch
from kill_and_resume_page import summary
from yapf.yapflib import yapf_api

from moe_det.common import atomic_file
from moe_det.common.checkpoints import latest_checkpoint
from moe_det.datasets.shapes import ShapesSettings, make_shapes
from moe_det.errors import CheckpointError
from moe_det.robustness.resume_point import check_resumable
from moe_det.running import launch  # noqa: F401  launch: imported once for all forks

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).parent / 'records' / 'kill_and_resume.json'
PER_EPOCH, BATCH = 6, 2
VARIANTS = [  # constraint, data workers, slow writes
    ('RelativeImportanceConstraint', 2, True),
    ('KLConstraint', 0, False),
    ('RelativeImportanceConstraint', 0, False),
    ('KLConstraint', 2, True),
]
STARTING = 0.15  # share of the kills before the process has saved anything
WRITING = 0.4  # share of those that wait for a write to begin, where writes are slow
SLOW_WRITE = 0.4  # seconds
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


# -- processes ------------------------------------------------------------------------------------------------------


def start(config: Path, data: Path, work_dir: Path, log: Path, slow: bool) -> int:
    """Forks a process that runs tools/train.py, in a group of its own, and returns its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if slow:
            atomic_file._write_block = write_slowly
        spec = importlib.util.spec_from_file_location('train', ROOT / 'tools' / 'train.py')
        train = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(train)
        arguments = ['--data-root', data, '--work-dir', work_dir, '--seed', '0', '--resume']
        status = train.main([str(config), *map(str, arguments)])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def write_slowly(file, block: memoryview) -> None:
    """Writes in small pieces with pauses."""
    piece = len(block) // 16 + 1
    for at in range(0, len(block), piece):
        file.write(block[at : at + piece])
        time.sleep(SLOW_WRITE / 16)


def kill(process: int) -> None:
    """SIGKILL for the process and its data workers."""
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)


def ended(process: int) -> int | None:
    """Returns the exit status of a process, or None while it runs."""
    done, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def noted(work_dir: Path) -> int:
    """Returns the iterations of the checkpoint that was noted last; 0 before the first."""
    last = latest_checkpoint(str(work_dir))
    return int(Path(last).stem.rpartition('_')[2]) if last else 0


def wait_for_kill(process: int, work_dir: Path, rng: random.Random, times: dict, slow: bool) -> str | None:
    """Waits until the instant of the kill; returns what it was waiting for, None if the process ended before."""
    first, begin, draw = noted(work_dir), time.monotonic(), rng.random()
    aim = 'start' if draw < STARTING else 'write' if slow and draw < STARTING + WRITING else 'training'
    longest = dict(start=times['startup'], write=SLOW_WRITE, training=3 * (times['step'] + 2 * slow * SLOW_WRITE))
    delay = rng.uniform(0, longest[aim])
    while True:
        status = ended(process)
        if status is not None:
            if status:
                raise RuntimeError(f'the process ended with status {status}')
            return None
        writing = any('.pth.' in path.name for path in atomic_file.unfinished_files(work_dir))
        if aim == 'start' or (aim == 'write' and writing and time.monotonic() - begin > 0.1 * times['startup']):
            break
        if aim == 'training' and noted(work_dir) > first:
            break
        time.sleep(0.005)
        if time.monotonic() - begin > 300:
            raise RuntimeError('the process makes no progress')
    time.sleep(delay)
    return aim


def place_of(work_dir: Path) -> str:
    """Where a kill fell, from what it left."""
    left = [path.name for path in atomic_file.unfinished_files(work_dir)]
    if any('.pth.' in name for name in left):
        return 'within a checkpoint write'
    newest = max((int(path.stem.rpartition('_')[2]) for path in work_dir.glob('iter_*.pth')), default=0)
    if left or newest > noted(work_dir):
        return 'between checkpoint and note'
    return 'elsewhere'


def resumed_at(log: Path) -> int | None:
    """Returns the iteration at which a process went on, 0 from scratch, None if it was killed before."""
    text = log.read_text(errors='replace')
    if 'resumed epoch' in text:
        return int(text.rpartition('resumed epoch')[2].split('iter: ')[1].split()[0])
    return 0 if 'training starts from scratch' in text else None


# -- what a run ends with -------------------------------------------------------------------------------------------


def end_state(work_dir: Path) -> dict:
    """Weights, optimizer, schedules and the history of the log of a finished run."""
    content = torch.load(latest_checkpoint(str(work_dir)), map_location='cpu', weights_only=True)
    history = content['message_hub']['log_scalars']
    scalars = {key: [part.tolist() for part in buffer.data] for key, buffer in history.items() if 'time' not in key}
    kept = ('state_dict', 'optimizer', 'param_schedulers')
    place = {key: content['meta'][key] for key in ('epoch', 'iter', 'seed')}
    return dict({key: content[key] for key in kept}, scalars=scalars, place=place)


def same(first: object, second: object) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def uninterrupted(config: Path, data: Path, work_dir: Path) -> dict:
    """Trains without a kill; returns the end state and the times of start-up and of an iteration, in seconds."""
    begin = time.monotonic()
    process = start(config, data, work_dir, work_dir.with_suffix('.log'), slow=False)
    first = None
    while (status := ended(process)) is None:
        if first is None and noted(work_dir):
            first = time.monotonic()
        time.sleep(0.005)
    if status:
        raise RuntimeError(f'the uninterrupted run failed:\n{work_dir.with_suffix(".log").read_text()[-3000:]}')
    step = (time.monotonic() - first) / (noted(work_dir) - 1)
    return dict(state=end_state(work_dir), startup=first - begin, step=step)


def killed_run(config: Path, data: Path, work_dir: Path, reference: dict, slow: bool, rng, most: int) -> dict:
    """Trains with kills until the end, or until ``most`` kills, and then to the end; returns what happened."""
    kills, problems = [], []
    log = work_dir.with_suffix('.log')
    expected, open_kills = 0, []
    while True:
        process = start(config, data, work_dir, log, slow)
        try:
            if len(kills) < most:
                aim = wait_for_kill(process, work_dir, rng, reference, slow)
            else:
                aim = None
                while (status := ended(process)) is None:
                    time.sleep(0.01)
                if status:
                    raise RuntimeError(f'the process ended with status {status}')
        except RuntimeError as error:
            problems.append(f'{error}: {log.read_text(errors="replace")[-1500:]}')
            return dict(kills=kills, problems=problems, equal=False)
        if aim is not None:
            kill(process)
        went_on = resumed_at(log)
        if went_on is not None:
            if went_on != expected:
                problems.append(f'went on at iteration {went_on}, the checkpoint noted was {expected}')
            for item in open_kills:
                item['resumed'] = went_on == expected
            open_kills = []
        if aim is None:
            break
        expected = noted(work_dir)
        for path in work_dir.glob('*.pth'):
            try:
                check_resumable(str(path), 'after the kill')
            except CheckpointError as error:
                problems.append(str(error))
        kills.append(dict(aim=aim, place=place_of(work_dir), iteration=expected, resumed=False))
        open_kills.append(kills[-1])
    if leftover := [path.name for path in atomic_file.unfinished_files(work_dir)]:
        problems.append(f'unfinished files were left: {leftover}')
    return dict(kills=kills, problems=problems, equal=same(end_state(work_dir), reference['state']))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 if every kill was survived and every run ended as it should."""
    parser = argparse.ArgumentParser(description='Kill a training at random instants and resume it.')
    parser.add_argument('--kills', type=int, default=200, metavar='N', help='default: %(default)s')
    parser.add_argument('--kills-per-run', type=int, default=6, metavar='N', help='default: %(default)s')
    parser.add_argument('--epochs', type=int, default=2, help='of a run (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the instants (default: %(default)s)')
    parser.add_argument('--out', type=Path, default=RECORD, help='the record, a .json; a .md page goes beside it')
    args = parser.parse_args(argv)
    versions = f'Python {platform.python_version()}, torch {torch.__version__}, mmengine {mmengine.__version__}'
    record = dict(runs=[], seconds=0.0, seed=args.seed, iterations=PER_EPOCH * args.epochs)
    if args.out.is_file():
        earlier = json.loads(args.out.read_text())
        wanted = args.seed, record['iterations'], versions
        if (earlier['seed'], earlier['iterations'], earlier['versions']) == wanted:
            record = earlier
    command = shlex.join(['python', 'benchmarks/kill_and_resume.py', *(sys.argv[1:] if argv is None else argv)])
    from moe_det.common.software import machine

    record |= dict(command=command, machine=machine(), versions=versions, date=date.today().isoformat())

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
            atomic_file.write_atomically(args.out, json.dumps(record, indent=1))
            atomic_file.write_atomically(args.out.with_suffix('.md'), summary(record))
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
