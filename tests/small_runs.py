"""Short runs of mmengine: detectors on images in memory, and toy models on files or on random numbers."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from small_models import batch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import moe_det  # noqa: F401

IMAGES = 4


class Images(Dataset):
    """Images in memory.

    Args:
        counts: objects of each.
        same_boxes: every image has the objects of the second.
    """

    metainfo: dict = {}

    def __init__(self, counts: tuple[int, ...] = (2,) * IMAGES, same_boxes: bool = False) -> None:
        data = batch([(64, 64)] * len(counts), counts)
        self.items = [dict(inputs=x, data_samples=s) for x, s in zip(data['inputs'], data['data_samples'], strict=True)]
        for item in self.items if same_boxes else ():
            item['data_samples'].gt_instances = self.items[1]['data_samples'].gt_instances

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]


class Count(BaseMetric):
    """The number of images that were scored."""

    def process(self, data_batch, data_samples) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list) -> dict:
        return dict(count=len(results))


class QuickRunner(Runner):
    """Leaves out the report on the machine, which takes longer than these trainings."""

    def _log_env(self, env_cfg: dict) -> None:
        pass


class Collect(logging.Handler):
    """Keeps what is written to a log."""

    def __init__(self) -> None:
        super().__init__()
        self.records = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Losses(Hook):
    """Keeps what each training step returned."""

    def __init__(self) -> None:
        self.steps = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.steps.append({key: value.item() for key, value in outputs.items()})


def make_runner(model: nn.Module, work_dir: Path, *hooks: Hook | dict, epochs: int = 2) -> Runner:
    """A runner of two iterations an epoch, with validation at the end and a test."""

    def loader() -> DataLoader:
        return DataLoader(Images(), batch_size=2, collate_fn=pseudo_collate)

    name = f'{work_dir.parent.name}-{work_dir.name}'

    return QuickRunner(
        model,
        str(work_dir),
        train_dataloader=loader(),
        val_dataloader=loader(),
        test_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=epochs),
        val_cfg=dict(),
        test_cfg=dict(),
        optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4)),
        val_evaluator=[Count()],
        test_evaluator=[Count()],
        default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=list(hooks),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')], name=name),
        experiment_name=name,
        default_scope='mmdet',
        randomness=dict(seed=0),
    )


def scalars_of(work_dir: Path) -> list[dict]:
    """The lines that the visualisation backend wrote."""
    (file,) = work_dir.rglob('scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def hooks_of(runner: Runner, kind: type) -> Hook:
    (found,) = [hook for hook in runner.hooks if isinstance(hook, kind)]
    return found


def stop_workers(runner: Runner) -> None:
    """Ends a training's data workers now; left to the garbage collector, each takes seconds."""
    loop = runner._train_loop  # a dict before the run
    endless = getattr(loop, 'dataloader_iterator', None)
    iterators = [getattr(endless, name, None) for name in ('_iterator', '_batches')]
    iterators.append(getattr(getattr(loop, 'dataloader', None), '_iterator', None))
    for iterator in iterators:
        if hasattr(iterator, '_shutdown_workers'):
            iterator._shutdown_workers()


# -- a toy model on image files in COCO's format, some of them damaged ------------------------------------------------

EPOCHS = dict(by_epoch=True, max_epochs=2, val_interval=1)
ITERATIONS = dict(by_epoch=False, max_iters=8, val_interval=4)
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'img_shape', 'ori_shape')),
]


def dataset(folder: Path, test_mode: bool = False) -> dict:
    """The config of the data set."""
    return dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='all.json',
        data_prefix=dict(img='images'),
        metainfo=dict(classes=('thing',)),
        pipeline=PIPELINE,
        test_mode=test_mode,
    )


class Seen(BaseModel):
    """One weight per image id; the loss of a batch is the sum of its images' weights, so that a step marks them."""

    def __init__(self) -> None:
        super().__init__()
        self.marks = torch.nn.Parameter(torch.zeros(100))
        self.batches: list[list[int]] = []
        self.greys: dict[int, float] = {}

    def forward(self, inputs, data_samples, mode='tensor'):
        ids = [sample.img_id for sample in data_samples]
        if mode == 'loss':
            self.batches.append(ids)
            return dict(loss=self.marks[ids].sum())
        self.greys.update({ident: image.float().mean().item() for ident, image in zip(ids, inputs, strict=True)})
        return data_samples


def run_of(folder: Path, work_dir: Path, *hooks: dict, loop: dict = EPOCHS, workers: int = 0, **changes) -> Runner:
    """A runner with batches of two; the training data are wrapped once, as configs do."""
    wrapped = dict(type='RepeatDataset', times=1, dataset=dataset(folder))
    kind = 'DefaultSampler' if loop['by_epoch'] else 'InfiniteSampler'
    loader = dict(batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    settings = dict(
        model=Seen(),
        work_dir=str(work_dir),
        train_dataloader=dict(loader, dataset=wrapped, sampler=dict(type=kind, shuffle=True)),
        train_cfg=loop,
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=loop['by_epoch'])),
        custom_hooks=list(hooks),
        default_scope='mmdet',
        experiment_name=f'{work_dir.parent.name}-{work_dir.name}',
        randomness=dict(seed=0),
    )
    return QuickRunner(**{**settings, **changes})


def validated(folder: Path) -> dict:
    """Arguments of a Runner that validate on a folder too."""
    return dict(
        val_dataloader=dict(
            batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset(folder, test_mode=True)
        ),
        val_cfg=dict(),
        val_evaluator=[Count()],
    )


# -- a training of a few milliseconds per iteration whose every number depends on random draws, and ways to stop it ----

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


FOUR_EPOCHS = dict(by_epoch=True, max_epochs=4, val_interval=2)
TWENTY_ITERATIONS = dict(by_epoch=False, max_iters=20, val_interval=10)


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
        loop=FOUR_EPOCHS, workers=0, sampler=dict(type='DefaultSampler', shuffle=True), checkpoint={}, exact=True
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
    return QuickRunner(**{**runner, **changes})


def train(runner: Runner) -> Runner:
    """Trains until the end or a :class:`Kill`, then makes the process as a new one."""
    try:
        runner.train()
    except Killed:
        pass
    finally:
        stop_workers(runner)
        for manager in (MessageHub, MMLogger, Visualizer):
            manager._instance_dict.clear()
        random.seed(99)
        np.random.seed(99)
        torch.manual_seed(99)
    return runner


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
