"""A training of a few milliseconds per iteration whose every number depends on random draws, and ways to stop it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.runner import BaseLoop, Runner
from mmengine.visualization import Visualizer
from torch.utils.data import Dataset

import moe_det  # noqa: F401

SAMPLES = 10


class Draws(BaseModel):
    """A layer, dropout, and noise from numpy's and Python's generators."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(5, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.seen: list[list[float]] = []

    def forward(self, inputs, mode='tensor'):
        inputs = torch.stack(inputs) if isinstance(inputs, list) else inputs
        if mode != 'loss':
            return [random.random() + np.random.rand() + torch.rand(()).item() for _ in inputs]
        self.seen += inputs.tolist()
        output = torch.nn.functional.dropout(self.norm(self.layer(inputs)), 0.5)
        return dict(loss=output.square().mean() * (1 + random.random()) + np.random.rand() * output.mean())


class Augmented(Dataset):
    """Sample i is (i, three random numbers, 1); each number is of another generator."""

    metainfo = dict(classes=('a', 'b'))

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict:
        values = [index, random.random(), np.random.rand(), torch.rand(()).item(), 1.0]
        return dict(inputs=torch.tensor(values, dtype=torch.float32))


class Falling(BaseMetric):
    """Gets worse with every validation, so that the first checkpoint is the best."""

    def process(self, data_batch, data_samples) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list) -> dict:
        return dict(value=sum(results))


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


class Kill(Hook):
    """Ends the run at a point given by the name of a hook method and the iteration, after all other hooks."""

    priority = 'LOWEST'

    def __init__(self, method: str, iteration: int) -> None:
        self.happened = False

        def end(runner, *args, **kwargs) -> None:
            if runner.iter == iteration:
                self.happened = True
                raise Killed

        setattr(self, method, end)


EPOCHS = dict(by_epoch=True, max_epochs=4, val_interval=2)
ITERATIONS = dict(by_epoch=False, max_iters=20, val_interval=10)


def training(folder: Path, name: str, *hooks, **changes) -> Runner:
    """A runner of 20 iterations: four epochs of five, or one stretch of twenty.

    Args:
        folder: work folder.
        name: a process keeps a log by this name, so two runs of one process need two.
        *hooks: beside ExactResumeHook.
        **changes: ``loop``, ``workers``, ``sampler``, ``checkpoint``, ``exact`` (False leaves the hook out), and
            arguments of Runner.
    """
    settings = dict(
        loop=EPOCHS, workers=0, sampler=dict(type='DefaultSampler', shuffle=True), checkpoint={}, exact=True
    )
    loop, workers, sampler, checkpoint, exact = (changes.pop(key, value) for key, value in settings.items())
    torch.manual_seed(0)
    loader = dict(batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    runner = dict(
        model=Draws(),
        work_dir=str(folder),
        train_dataloader=dict(loader, sampler=sampler, dataset=Augmented()),
        val_dataloader=dict(batch_size=5, sampler=dict(type='DefaultSampler', shuffle=False), dataset=Augmented()),
        train_cfg=loop,
        val_cfg=dict(),
        val_evaluator=[Falling()],
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.05)),
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=False, T_max=20),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=3),
            checkpoint=dict(type='CheckpointHook', **{'by_epoch': loop['by_epoch'], 'interval': 1, **checkpoint}),
        ),
        custom_hooks=[dict(type='ExactResumeHook')] * exact + list(hooks),
        experiment_name=name,
        default_scope='mmdet',
        randomness=dict(seed=3),
        log_level='WARNING',
    )
    return Runner(**{**runner, **changes})


def train(runner: Runner) -> Runner:
    """Trains until the end or a :class:`Kill`, then makes the process as a new one."""
    try:
        runner.train()
    except Killed:
        pass
    finally:
        _end_workers(runner)
        for manager in (MessageHub, MMLogger, Visualizer):
            manager._instance_dict.clear()
        random.seed(99)
        np.random.seed(99)
        torch.manual_seed(99)
    return runner


def _end_workers(runner: Runner) -> None:
    """Left to the garbage collector, each worker of a loader takes five seconds to end."""
    loop = runner._train_loop
    if isinstance(loop, BaseLoop):
        batches = getattr(getattr(loop, 'dataloader_iterator', None), '_batches', None)
        for iterator in (loop.dataloader._iterator, batches):
            if hasattr(iterator, '_shutdown_workers'):
                iterator._shutdown_workers()


def result(runner: Runner) -> dict:
    """All that a run ends with: weights, optimizer, schedules, and the history of losses and learning rates."""
    scalars = {
        key: [part.tolist() for part in buffer.data]
        for key, buffer in runner.message_hub.log_scalars.items()
        if 'time' not in key
    }
    return dict(
        weights=runner.model.state_dict(),
        optimizer=runner.optim_wrapper.state_dict(),
        schedules=[scheduler.state_dict() for scheduler in runner.param_schedulers],
        scalars=scalars,
        place=(runner.epoch, runner.iter),
    )


def logged(folder: Path) -> dict[tuple, dict]:
    """The lines that the runs of a folder logged, by step and kind; of lines logged again the last."""
    lines = {}
    for file in sorted(folder.rglob('scalars.json')):
        for text in file.read_text().splitlines():
            line = {key: value for key, value in json.loads(text).items() if 'time' not in key and key != 'memory'}
            lines[line['step'], 'lr' in line] = line
    return lines


def differences(first: object, second: object, path: str = '') -> list[str]:
    """Paths at which two results are not equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [path]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f'{path}: {sorted(map(str, first.keys() ^ second.keys()))}']
        return [found for key in first for found in differences(first[key], second[key], f'{path}/{key}')]
    if isinstance(first, list | tuple) and len(first) == len(second):
        return [found for i in range(len(first)) for found in differences(first[i], second[i], f'{path}/{i}')]
    return [] if first == second else [f'{path}: {first!r} is not {second!r}']
