"""Trainings in processes of their own, which are killed at random instants, and what they leave."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from common import ROOT

from moe_det.common import atomic_file
from moe_det.common.checkpoints import latest_checkpoint
from moe_det.errors import CheckpointError
from moe_det.robustness.resume_point import check_resumable

STARTING = 0.15  # share of the kills before the process has saved anything
WRITING = 0.4  # share of those that wait for a write to begin, where writes are slow
SLOW_WRITE = 0.4  # seconds


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
