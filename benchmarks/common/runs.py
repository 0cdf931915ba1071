"""Trainings and analyses that a benchmark runs as commands, what they leave, and what tells their configs apart."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from . import ROOT

OF_EPOCH = {'AP': 'bbox_mAP', 'AP_S': 'bbox_mAP_s', 'AP_M': 'bbox_mAP_m', 'AP_L': 'bbox_mAP_l'}
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


def schedule(epochs: int, tests: int = 1, rate: float | None = None) -> dict[str, object]:
    """The changed keys of a training of so many epochs, tested so often, at another peak learning rate or its own."""
    peak = {} if rate is None else {'param_scheduler.1.eta_min': rate / 100, 'optim_wrapper.optimizer.lr': rate}
    return {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': max(1, epochs // tests),
        'param_scheduler.1.end': epochs,
        **peak,
        'default_hooks.checkpoint.max_keep_ckpts': 1,
    }


def folder_of(name: str) -> str:
    """A row's name as that of a folder."""
    return name.replace(', ', '_').replace(' ', '-')


def threads_of(jobs: int, asked: int | None = None) -> int | None:
    """Threads of each of so many commands that share the cores; None, the command's own choice, for one."""
    from moe_det.common.software import cores  # imports torch

    return asked or (max(1, cores() // jobs) if jobs > 1 else None)


def make_shapes(folder: Path, log: Path, options: Mapping[str, object] = {}) -> None:
    """Draws the images of a benchmark on first use, with changed options of tools/misc/make_shapes.py."""
    words = [part for key, value in options.items() for part in (f'--{key}', value)]
    call([sys.executable, 'tools/misc/make_shapes.py', folder, *words], log)


def call(command: Iterable[object], log: Path, threads: int | None = None) -> float:
    """Runs a command with its output in a file, on so many threads; returns its seconds.

    Modules of benchmarks/ can be imported, for configs whose ``custom_imports`` name them.

    Raises:
        RunError: it ended with an error.
    """
    command = list(map(str, command))
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


def train(
    name: str,
    config: Path,
    seed: int,
    checkpoint: Path,
    arguments: Iterable[object],
    options: dict[str, object],
    threads: int | None = None,
) -> Path:
    """Trains a run unless it is finished; goes on with one that was interrupted.

    Args:
        name: for the user.
        config: of the run.
        seed: of the run.
        checkpoint: what it ends with, in its work folder.
        arguments: of tools/train.py.
        options: changed keys of the config.
        threads: of the command; None leaves it to the command.

    Returns:
        The checkpoint.
    """
    if checkpoint.is_file():
        return checkpoint
    print(f'{name}, seed {seed}: training', flush=True)
    folder = checkpoint.parent
    command = [sys.executable, 'tools/train.py', config, '--work-dir', folder, '--seed', seed]
    resume = ['--resume'] if (folder / 'last_checkpoint').is_file() else []
    call([*command, *arguments, *resume, *as_options(options)], folder / 'train.log', threads)
    return checkpoint


def run_tool(
    script: str,
    config: Path,
    arguments: Iterable[object],
    options: dict[str, object],
    log: Path,
    threads: int | None = None,
) -> None:
    """Runs a script of tools/ on a config.

    Args:
        script: below tools/.
        config: of the detector.
        arguments: of the script, after the config.
        options: changed keys of the config.
        log: file of its output.
        threads: of the command; None leaves it to the command.

    Raises:
        RunError: it ended with an error.
    """
    call([sys.executable, f'tools/{script}', config, *arguments, *as_options(options)], log, threads)


def metrics_of(
    config: Path,
    checkpoint: Path,
    folder: Path,
    arguments: Iterable[object],
    options: dict[str, object],
    threads: int | None = None,
) -> dict[str, float]:
    """What tools/test.py says of a checkpoint; its files lie in the folder."""
    arguments = [checkpoint, '--work-dir', folder / 'test', *arguments]
    run_tool('test.py', config, arguments, options, folder / 'test.log', threads)
    written = max((folder / 'test').glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    return json.loads(written.read_text(encoding='utf-8').splitlines()[-1])


def report(
    config: Path,
    checkpoint: Path,
    out_dir: Path,
    arguments: Iterable[object],
    options: dict[str, object],
    threads: int | None = None,
) -> dict:
    """The numbers of a report on size specialisation, which is written on first use, without figures."""
    numbers = out_dir / 'size_specialization.json'
    if not numbers.is_file():
        arguments = [checkpoint, '--out-dir', out_dir, '--no-figures', *arguments]
        log = out_dir.with_name(f'{out_dir.name}.log')
        run_tool('analysis_tools/size_specialization.py', config, arguments, options, log, threads)
    content = json.loads(numbers.read_text(encoding='utf-8'))
    if len(content['layers']) == 1:  # the report has no swap of all layers beside that of the only one
        content['swap'] = content['layers'][0]['swap']
    return content


def curve_of(checkpoint: Path) -> dict[str, dict[str, float]]:
    """Average precisions by epoch, from the evaluations during a run; those of a resumed run come from all its logs."""
    found = {}
    for scalars in sorted(checkpoint.parent.glob('*/vis_data/scalars.json')):
        for line in scalars.read_text(encoding='utf-8').splitlines():
            row = json.loads(line)
            if 'coco/bbox_mAP' in row and 'step' in row:
                found[str(row['step'])] = {short: row[f'coco/{name}'] for short, name in OF_EPOCH.items()}
    return found


def cost_over(model: dict, dense: dict, image: tuple[int, int]) -> dict[str, float]:
    """Multiply-adds of a detector for one image, in head and whole, over those of another; parameters likewise.

    Args:
        model: its config.
        dense: the config of the other one.
        image: height and width of the network's input.
    """
    from moe_det.cost.part_costs import WHOLE

    own, other = (_costs(cfg, image) for cfg in (model, dense))
    return {
        'multiply_adds_over_dense': own[WHOLE].active_macs / other[WHOLE].active_macs,
        'head_over_dense': own['bbox_head'].active_macs / other['bbox_head'].active_macs,
        'parameters_over_dense': own[WHOLE].params / other[WHOLE].params,
    }


def _costs(model: dict, image: tuple[int, int]) -> dict:
    """Costs of a detector's parts; one with which many are compared is looked at once."""
    from mmengine.registry import init_default_scope

    from moe_det.cost.part_costs import model_cost

    init_default_scope('mmdet')
    key = repr(model), image
    if key not in _KNOWN_COSTS:
        _KNOWN_COSTS[key] = model_cost(model, image).parts
    return _KNOWN_COSTS[key]


_KNOWN_COSTS: dict[tuple, dict] = {}


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
