"""Makes data order and seeds reproducible, so that a resumed run sees the same batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from .exact_resume_random import PlacedBatches


def place_batches(runner: Runner, sampler_seed: int | None = None) -> PlacedBatches | None:
    """Makes the order and the augmentations of a run's training data a function of seed, epoch and position, in place.

    Args:
        runner: a runner whose training loop is built and has not begun.
        sampler_seed: the sampler's seed in the run that is resumed.

    Returns:
        PlacedBatches | None: what now stands in the data loader's place for a batch sampler; None for a data loader
        that works without batches of indices, which this cannot serve.
    """
    loop = runner.train_loop
    loader = loop.dataloader
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    if isinstance(loader.batch_sampler, PlacedBatches):  # the runner trains a second time
        return loader.batch_sampler
    seed = sampler_seed_of(loader)
    # mmengine < 0.10.12 starts the workers of an iteration-based loop when it is built, and they draw from the sampler
    started = isinstance(loop, IterBasedTrainLoop) and not _skips_by_itself(loop) and loader.num_workers > 0
    if started or (sampler_seed is not None and sampler_seed != seed):
        _renew_samplers(runner, loader, seed if sampler_seed is None else sampler_seed)
    rank, world_size = get_dist_info()
    placed = PlacedBatches(loader.batch_sampler, runner.seed, rank, world_size)
    # torch forbids to set it after construction, for the sake of iterators that run already
    object.__setattr__(loader, 'batch_sampler', placed)
    loader._iterator = None  # persistent workers
    return placed


def sampler_seed_of(loader: DataLoader) -> int | None:
    """The seed of the loader's sampler; mmengine draws one where the config has none."""
    seed = getattr(getattr(loader.batch_sampler, 'sampler', loader.sampler), 'seed', None)
    return seed if isinstance(seed, int) else None


def _renew_samplers(runner: Runner, loader: DataLoader, seed: int | None) -> None:
    cfg = runner._train_dataloader
    if isinstance(cfg, DataLoader) or not isinstance(cfg.get('sampler'), dict):
        sampler: Any = getattr(loader.batch_sampler, 'sampler', None)
        if seed is not None and hasattr(sampler, 'seed'):
            sampler.seed = seed
        if hasattr(sampler, '_indices_of_rank') and hasattr(sampler, 'indices'):  # mmengine's InfiniteSampler
            sampler.indices = sampler._indices_of_rank()
        return
    sampler = DATA_SAMPLERS.build(copy.deepcopy(cfg['sampler']), default_args=dict(dataset=loader.dataset, seed=seed))
    if isinstance(cfg.get('batch_sampler'), dict):
        arguments = dict(sampler=sampler, batch_size=cfg['batch_size'])
        batches = DATA_SAMPLERS.build(copy.deepcopy(cfg['batch_sampler']), default_args=arguments)
    else:
        assert loader.batch_size is not None  # a loader with batches of indices, see above
        batches = BatchSampler(sampler, loader.batch_size, loader.drop_last)
        object.__setattr__(loader, 'sampler', sampler)
    object.__setattr__(loader, 'batch_sampler', batches)


def _skips_by_itself(loop: IterBasedTrainLoop) -> bool:
    return hasattr(loop.dataloader_iterator, 'skip_iter')


class EndlessBatches:
    """Replaces mmengine's endless iterator of an iteration-based loop.

    Args:
        loader: a data loader with placed batches.
        discarded: results that the loop will ask for and throw away, to get to where it was: they come at once, as
            None, because the first pass begins there.
    """

    def __init__(self, loader: DataLoader, discarded: int = 0) -> None:
        self._loader, self._discarded = loader, discarded
        self._batches: Iterator | None = None

    def skip_iter(self, num_iters: int) -> None:
        """mmengine >= 0.10.12 asks for the skip here; the first pass begins there."""

    def __iter__(self) -> EndlessBatches:
        return self

    def __next__(self):
        if self._discarded > 0:
            self._discarded -= 1
            return None
        if self._batches is None:
            self._batches = iter(self._loader)
        try:
            return next(self._batches)
        except StopIteration:
            placed = self._loader.batch_sampler
            placed.start(placed.epoch + 1)
            self._batches = iter(self._loader)
            return next(self._batches)


def go_to_iteration(loop: IterBasedTrainLoop, placed: PlacedBatches) -> None:
    """Lets an iteration-based loop continue at its iteration without loading earlier batches."""
    discarded = 0 if _skips_by_itself(loop) else loop.iter
    placed.endless = True
    placed.start(0, skip=loop.iter)
    loop.dataloader_iterator = EndlessBatches(loop.dataloader, discarded)


def number_from(loop: EpochBasedTrainLoop, first: int) -> None:
    """Lets the next epoch count its batches from ``first``; :func:`number_from_zero` takes it back."""
    run_iter = loop.run_iter
    loop.run_iter = lambda number, batch: run_iter(number + first, batch)


def number_from_zero(loop: EpochBasedTrainLoop) -> None:
    """The following epochs count from 0."""
    loop.__dict__.pop('run_iter', None)
