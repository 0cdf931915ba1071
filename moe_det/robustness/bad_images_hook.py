"""The hook that skips images that cannot be read, counts them and stops when there are too many."""

from __future__ import annotations

import inspect
import json
import os
from collections import Counter
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop

from ..checks import check_count
from ..errors import MoEConfigError
from .tolerant_loading import BLANK, REFUSE, SKIP, make_tolerant, too_many

JOURNAL = 'bad_images'
_DONE = {SKIP: 'skipped', BLANK: 'replaced by a black one'}


class SkipBadImagesHook(Hook):
    """Skips training images that are missing, empty, truncated or cannot be decoded; mmdet stops at the first one.

    Another image, drawn at random, takes the place of a skipped one. Each file is named once in the log with the
    reason, the end of an epoch gives the totals over all processes, and ``bad_images.jsonl`` in the work folder
    (``bad_images.rank1.jsonl``, ... of other processes) lists every skip, including those of the run that this one
    resumes. Works with data loaders of any number of workers.

    Args:
        max_images: different files of the run that may be unreadable; one more is an error that names them. Processes
            compare their counts at the end of each epoch, and of every 1000 iterations.
        evaluation: what validation and test do: ``'error'`` stops and names the file, ``'blank'`` takes a black image
            of the annotated size, so that its objects count as missed.
    """

    priority = 'VERY_HIGH'  # before whatever takes the order of the images from the data loader
    interval = 1000

    def __init__(self, max_images: int = 100, evaluation: str = REFUSE) -> None:
        check_count('SkipBadImagesHook', 'max_images', max_images, minimum=0)
        if evaluation not in (REFUSE, BLANK):
            raise MoEConfigError(f"SkipBadImagesHook.evaluation={evaluation!r}: expected 'error' or 'blank'")
        self.max_images = max_images
        self.evaluation = evaluation
        self.bad: dict[str, str] = {}
        self._times: Counter = Counter()  # by policy, since the last report
        self._journal = ''
        self._read = 0

    # -- preparation -------------------------------------------------------------------------------------------

    def _find_journal(self, runner) -> None:
        """Finds the journal; what earlier runs wrote there is not this run's."""
        if self._journal:
            return
        rank = get_rank()
        self._journal = os.path.join(runner.work_dir, JOURNAL + (f'.rank{rank}' if rank else '') + '.jsonl')
        self._read = os.path.getsize(self._journal) if os.path.exists(self._journal) else 0

    def before_train(self, runner) -> None:
        """Makes the training data tolerant; a resumed run continues the journal, a new run starts a new one."""
        self._find_journal(runner)
        if runner.iter:
            self._read = 0
            if self._poll():
                runner.logger.warning(f'{len(self.bad)} images could not be read before this resume: {self._journal}')
            self._times.clear()
        elif self._read:
            os.remove(self._journal)
            self._read = 0
        loader = runner.train_dataloader
        if not make_tolerant(loader.dataset, SKIP, self._journal, self.max_images):
            runner.logger.warning(
                'SkipBadImagesHook: the training data have no LoadImageFromFile in their pipeline; images that cannot '
                'be read are not skipped'
            )
        _restart_workers(runner.train_loop)

    def before_val(self, runner) -> None:
        """Makes validation refuse damaged images, or take blank ones."""
        self._find_journal(runner)
        make_tolerant(runner.val_dataloader.dataset, self.evaluation, self._journal, self.max_images)

    def before_test(self, runner) -> None:
        """Makes the test refuse damaged images, or take blank ones."""
        self._find_journal(runner)
        make_tolerant(runner.test_dataloader.dataset, self.evaluation, self._journal, self.max_images)

    # -- counting ----------------------------------------------------------------------------------------------

    def _poll(self) -> dict[str, tuple[str, str]]:
        """Reads what the data loader's processes have written; returns the files that are new: (reason, policy)."""
        try:
            if os.stat(self._journal).st_size <= self._read:
                return {}
        except FileNotFoundError:
            return {}
        with open(self._journal, 'rb') as file:
            file.seek(self._read)
            content = file.read()
        content = content[: content.rfind(b'\n') + 1]  # a line may be on its way
        self._read += len(content)
        new = {}
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                path, reason, policy = entry['path'], entry['reason'], entry['policy']
            except (ValueError, KeyError, TypeError):  # a process was killed while it wrote
                continue
            self._times[policy] += 1
            if path not in self.bad:
                self.bad[path] = reason
                new[path] = reason, policy
        return new

    def _name_new(self, runner) -> None:
        for path, (reason, policy) in self._poll().items():
            runner.logger.warning(f'{path} cannot be read and is {_DONE[policy]}: {reason}')

    def _report(self, runner, policy: str, ended: str) -> None:
        """Adds up the processes' counts; every process must call it.

        Raises:
            DataError: there are more than ``max_images``.
        """
        self._name_new(runner)
        joined: dict[str, str] = {}
        times = 0
        for bad, count in all_gather_object((self.bad, self._times.pop(policy, 0))):
            joined.update(bad)
            times += count
        if len(joined) > self.max_images:
            raise too_many(joined, self.max_images, self._journal)
        if times:
            runner.logger.warning(
                f'{ended}: images that cannot be read were {_DONE[policy]} {times} times; {len(joined)} files so far, '
                f'listed in {self._journal} (max_images={self.max_images})'
            )

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Names the files that are new.

        Raises:
            DataError: there are more than ``max_images``.
        """
        self._name_new(runner)
        if len(self.bad) > self.max_images:
            raise too_many(self.bad, self.max_images, self._journal)
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if not by_epoch and self.every_n_train_iters(runner, self.interval):
            self._report(runner, SKIP, f'iteration {runner.iter + 1}')

    def after_train_epoch(self, runner) -> None:
        """Logs the totals."""
        self._report(runner, SKIP, f'end of epoch {runner.epoch + 1}')

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Logs the blank images of a validation."""
        self._report(runner, BLANK, 'validation')

    def after_test_epoch(self, runner, metrics=None) -> None:
        """Logs the blank images of a test."""
        self._report(runner, BLANK, 'test')


def _restart_workers(loop: Any) -> None:
    """Takes back an iterator that mmengine 0.10.7's iteration-based loop made before any hook ran, with its workers."""
    iterator: Any = getattr(loop, 'dataloader_iterator', None)
    loader: Any = getattr(loop, 'dataloader', None)
    if getattr(iterator, '_iterator', None) is None or not loader.num_workers:
        return
    state = torch.get_rng_state()
    loader._iterator = None  # of persistent workers
    for sampler in (loader.sampler, loader.batch_sampler):
        if hasattr(sampler, '_indices_of_rank'):  # an infinite sampler whose indices the workers have taken ahead
            sampler.indices = sampler._indices_of_rank()
        if hasattr(sampler, '_aspect_ratio_buckets'):
            sampler._aspect_ratio_buckets = [[] for _ in sampler._aspect_ratio_buckets]
    loop.dataloader_iterator = type(iterator)(loader)
    torch.set_rng_state(state)


def tolerated_images(cfg: Config, split: str) -> int:
    """Returns how many unreadable images a run of ``cfg`` accepts in ``'train'``, ``'val'`` or ``'test'``."""
    defaults = inspect.signature(SkipBadImagesHook).parameters
    for hook in cfg.get('custom_hooks') or ():
        name = hook.get('type') if isinstance(hook, dict) else None
        if str(getattr(name, '__name__', name)).rpartition('.')[2] == SkipBadImagesHook.__name__:
            settings = {key: hook.get(key, defaults[key].default) for key in ('max_images', 'evaluation')}
            accepts = split == 'train' or settings['evaluation'] == BLANK
            return settings['max_images'] if accepts and isinstance(settings['max_images'], int) else 0
    return 0
