"""Trainings by mmengine's runner with the hooks of the project, resuming on the other device, and a tool."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from device.size_tool_case import analyse
from device.watch import Watch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from running.detector_runs import CASES as TRAININGS
from running.detector_runs import COUNTS, FOUR, Detections, run, trained
from small_files import coco_content
from small_runs import Images
from torch import Tensor

FOLDER = Path()  # of the check, set before a case runs
EXPERTS = dict(
    head=dict(**FOUR, constraint=dict(type='KLConstraint', weight=0.25)),
    backbone=dict(moe=dict(stages=(4,), **FOUR, constraint=dict(type='RelativeImportanceConstraint'))),
    precise=False,
)
PATIENCE = 300  # seconds until the other device's checkpoint must be there


class Keep(Hook):
    """Keeps each step's losses and weights, and counts the waits of the second one, between two logs."""

    priority = 'LOWEST'

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Ends a step; what follows, up to the next end, is the next one."""
        if runner.iter == 0:
            self.stretch = self.watch.counted('step')
            self.stretch.__enter__()
        elif runner.iter == 1:
            self.stretch.__exit__(None, None, None)
        self.watch.keep(f'step {runner.iter}', outputs)
        self.watch.keep(f'after step {runner.iter}', dict(runner.model.named_parameters()))


def training(watch: Watch, name: str, *hooks: Hook | dict, **changes) -> Runner:
    """Two epochs of two steps; each epoch leaves a checkpoint in ``FOLDER/<device>/<name>``."""
    settings = dict(
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-3)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=None, runtime_info=None),
    )
    runner = run(FOLDER / watch.device, name, *hooks, **{**EXPERTS, **settings, **changes})
    watch.keep('start', dict(runner.model.named_parameters()))
    runner.train()
    watch.keep('end', runner.model.state_dict())
    return runner


def run_training(watch: Watch) -> None:
    """Every hook that looks at experts, and a validation."""
    path = FOLDER / f'{watch.device}.json'
    write_annotations(path)
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=2, num_workers=0, sampler=sampler, dataset=Images(COUNTS))
    hooks = [dict(type=kind) for kind in ('ExactResumeHook', 'FiniteHook')]
    hooks += [dict(type='ExpertSizeHook', ann_file=str(path)), Keep(watch)]
    runner = training(
        watch,
        'training',
        *hooks,
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=2),
        val_dataloader=dict(loader, collate_fn=dict(type='pseudo_collate')),
        val_cfg={},
        val_evaluator=[Detections()],
    )
    for hook in runner.hooks:
        if type(hook).__name__ == 'ExpertSizeHook':
            watch.keep('sizes', {name: torch.from_numpy(mass) for name, mass in hook.mass.items()})


def write_annotations(path: Path) -> None:
    """A small, a medium and a large object in each image, whatever it shows."""
    objects = [(image, 1, [4, 4, 20, 20], side**2) for image in range(len(COUNTS)) for side in (20, 60, 200)]
    path.write_text(json.dumps(coco_content(objects, range(len(COUNTS)), {1: 'thing'}, (64, 64))))


def run_resumed(watch: Watch) -> None:
    """The second epoch, from the other device's checkpoint of the first."""
    other = FOLDER / ('cpu' if watch.device == 'cuda' else 'cuda') / 'training'
    begin = time.monotonic()
    while not (other / 'epoch_2.pth').exists():  # then the first is complete
        if time.monotonic() > begin + PATIENCE:
            raise TimeoutError(f'{other} has no checkpoint; the case needs a check of both devices')
        time.sleep(0.1)
    changes = dict(load_from=str(other / 'epoch_1.pth'), resume=True)
    training(watch, 'resumed', dict(type='ExactResumeHook'), **changes)


def run_half(watch: Watch) -> None:
    """Half precision with a loss scale that overflows once and then falls to a good one; on the CPU float32."""
    optimizer = dict(optimizer=dict(type='AdamW', lr=1e-3, fused=True))
    if watch.device == 'cuda':
        scale = dict(init_scale=2.0**60, backoff_factor=2.0**-50)
        optimizer.update(type='AmpOptimWrapper', loss_scale=scale)
    runner = training(watch, 'half precision', dict(type='FiniteHook'), Keep(watch), optim_wrapper=optimizer)
    if watch.device == 'cuda':
        watch.keep('scaler', dict(scale=torch.tensor(runner.optim_wrapper.loss_scaler.get_scale())))


def run_one_process(watch: Watch) -> None:
    """The training that two processes share (rank_worker.py)."""
    found = trained(FOLDER / watch.device, 'one process', **TRAININGS['soft'])
    watch.keep('start', found['start'])
    watch.keep('end', found['end'])


def run_size_tool(watch: Watch) -> None:
    """The whole report on size specialisation of a detector whose gates are planted."""
    report = analyse(FOLDER / watch.device / 'size', watch.device)
    report.pop('provenance')  # seconds and versions
    watch.keep('report', dict(flat_numbers(report)))


def flat_numbers(value: object, path: str = '') -> list[tuple[str, Tensor]]:
    """Path -> number, of all numbers in a json."""
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in flat_numbers(part, f'{path}/{key}')]
    if isinstance(value, list):
        return [pair for i, part in enumerate(value) for pair in flat_numbers(part, f'{path}/{i}')]
    if isinstance(value, int | float):
        return [(path, torch.tensor(float(value), dtype=torch.float64))]
    return []


CASES: dict[str, Callable[[Watch], None]] = {
    'run: training': run_training,
    'run: half precision': run_half,
    'run: one process': run_one_process,
    'run: size tool': run_size_tool,
    'run: resumed': run_resumed,  # last: the other device is there by then
}
