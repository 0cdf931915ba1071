"""Short runs of mmengine on four images in memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from small_models import batch
from torch import nn
from torch.utils.data import DataLoader

IMAGES = 4


class Images(torch.utils.data.Dataset):
    """Four images in memory."""

    def __init__(self) -> None:
        data = batch([(64, 64)] * IMAGES)
        self.items = [dict(inputs=x, data_samples=s) for x, s in zip(data['inputs'], data['data_samples'], strict=True)]
        self.metainfo = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]


class CountMetric(BaseMetric):
    """Counts what it is given."""

    def process(self, data_batch, data_samples) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list) -> dict:
        return dict(count=len(results))


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

    return Runner(
        model,
        str(work_dir),
        train_dataloader=loader(),
        val_dataloader=loader(),
        test_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=epochs),
        val_cfg=dict(),
        test_cfg=dict(),
        optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4)),
        val_evaluator=[CountMetric()],
        test_evaluator=[CountMetric()],
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
