"""Trainings of a toy model on a handful of image files in COCO's format, some of them damaged."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from PIL import Image

import moe_det  # noqa: F401

SIDE = 32
EPOCHS = dict(by_epoch=True, max_epochs=2, val_interval=1)
ITERATIONS = dict(by_epoch=False, max_iters=8, val_interval=4)
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'img_shape', 'ori_shape')),
]


def damage(folder: Path) -> list[str]:
    """Damages images 2, 3, 5 and 6 of a folder in four ways; returns their paths."""
    paths = [folder / 'images' / f'{number}.jpg' for number in (2, 3, 5, 6)]
    paths[0].write_bytes(b'')
    paths[1].write_bytes(b'<html>')
    paths[2].write_bytes(paths[2].read_bytes()[:300])
    paths[3].unlink()
    return [str(path) for path in paths]


def write_images(folder: Path, count: int = 10) -> Path:
    """Writes ``count`` images, whose grey value is ten times their id, with one object each."""
    (folder / 'images').mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        Image.new('RGB', (SIDE, SIDE), (10 * number,) * 3).save(folder / 'images' / f'{number}.jpg')
        images.append(dict(id=number, file_name=f'{number}.jpg', width=SIDE, height=SIDE))
        annotations.append(dict(id=number, image_id=number, category_id=1, bbox=[4, 4, 9, 9], area=81, iscrowd=0))
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='thing')])
    (folder / 'all.json').write_text(json.dumps(content))
    return folder


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


def stop_workers(runner: Runner) -> None:
    """Ends a training's data workers now; left to the garbage collector, each takes seconds."""
    loop = runner.train_loop
    endless = getattr(loop, 'dataloader_iterator', None)
    iterators = [loop.dataloader._iterator, *(getattr(endless, name, None) for name in ('_iterator', '_batches'))]
    for iterator in iterators:
        if hasattr(iterator, '_shutdown_workers'):
            iterator._shutdown_workers()


def validated(folder: Path) -> dict:
    """Arguments of a Runner that validate on a folder too."""
    return dict(
        val_dataloader=dict(
            batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset(folder, test_mode=True)
        ),
        val_cfg=dict(),
        val_evaluator=[Count()],
    )
