"""Trainings and analyses that a benchmark runs as commands, and what tells the configs behind its results apart."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


# the parts of a config that decide what a training gives
DECISIVE = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'custom_hooks')


def fingerprint(config: Path, changes: dict[str, object], *more: object) -> str:
    """Digest of what a config trains and of anything else that decides the result.

    Results of other settings must not stand beside those of today's configs. Changes of the code are not seen.

    Args:
        config: the file.
        changes: as of ``--cfg-options``.
        more: plain values.
    """
    from mmengine.config import Config

    resolved = Config.fromfile(config, import_custom_modules=False)
    resolved.merge_from_dict(dict(changes))
    parts = resolved.to_dict()
    text = json.dumps([[parts.get(key) for key in DECISIVE], *more], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class RunError(Exception):
    """A training or an analysis failed."""


def threads_of(jobs: int) -> int | None:
    """Threads of each of so many commands that share the cores; None, the command's own choice, for one."""
    from moe_det.common.software import cores  # imports torch

    return max(1, cores() // jobs) if jobs > 1 else None


def call(command: list[str], log: Path, threads: int | None = None) -> float:
    """Runs a command with its output in a file, on so many threads; returns its seconds.

    Modules of this folder can be imported, for configs whose ``custom_imports`` name them.

    Raises:
        RunError: it ended with an error.
    """
    paths = [str(ROOT / 'benchmarks'), *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
    if threads:
        environment['OMP_NUM_THREADS'] = str(threads)
    begin = time.perf_counter()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'w', encoding='utf-8') as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise RunError(f'{" ".join(command)}\nended with {done.returncode}, see {log}')
    return time.perf_counter() - begin


def as_options(options: dict[str, object]) -> list[str]:
    """``--cfg-options`` of the tools."""
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())] if options else []


def finished(function: Callable, tasks: Iterable[tuple], jobs: int) -> Iterator[tuple[tuple, object]]:
    """Runs ``function(*task)`` for all tasks and yields task and result as they end, ``jobs`` of them at once.

    A task that fails is printed and the others go on; after Ctrl-C no other begins.

    Raises:
        SystemExit: at the end, with the names of the tasks that failed.
    """
    failed = []
    pool = ThreadPoolExecutor(jobs)
    try:
        started = {pool.submit(function, *task): task for task in tasks}
        for future in as_completed(started):
            task = started[future]
            try:
                result = future.result()
            except RunError as error:
                failed.append(' '.join(map(str, task)))
                print(f'{failed[-1]}: {error}', file=sys.stderr, flush=True)
                continue
            yield task, result
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        raise SystemExit(f'failed: {", ".join(failed)}; the others are recorded')
