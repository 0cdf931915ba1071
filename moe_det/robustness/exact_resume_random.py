"""Random numbers of a run as a function of where it is: seed, epoch, position of the sample, iteration.

A generator's state would have to be saved for every process and worker, and what prefetching workers drew ahead
undone. A function of the place needs nothing saved, and gives the same with any number of workers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

_END = object()


def seed_of(*place: int | str) -> int:
    """Returns 128 bits that depend on all parts of ``place`` and look unrelated for different places."""
    text = '/'.join(map(str, place))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), 'little')


def set_generators(seed: int, accelerators: bool = False) -> None:
    """Seeds the global generators of Python, numpy and torch's CPU, each with bits of its own.

    Args:
        seed: 128 bits of :func:`seed_of`.
        accelerators: also those of all GPUs, which a data worker must not touch.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # torch's CPU generator uses 32 bits, and the same algorithm as numpy's: the same bits would give the same stream
    seed_torch = torch.manual_seed if accelerators else torch.default_generator.manual_seed
    seed_torch(seed >> 64)


class OwnGenerators:
    """Lends a piece of code global generators of its own: inside the context their stream, outside the former ones."""

    def __init__(self, seed: int) -> None:
        outer = _generator_state()
        set_generators(seed)
        self._state = _generator_state()
        _set_generator_state(outer)

    def __enter__(self) -> None:
        self._outer = _generator_state()
        _set_generator_state(self._state)

    def __exit__(self, *error) -> None:
        self._state = _generator_state()
        _set_generator_state(self._outer)


def _generator_state() -> tuple:
    return random.getstate(), np.random.get_state(), torch.default_generator.get_state()


def _set_generator_state(state: tuple) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.default_generator.set_state(state[2])


class PlacedBatch(Sequence):
    """The indices of a batch, which seed the generators while a data loader's worker goes through them.

    torch's fetcher reads ``[dataset[i] for i in batch]``, in a worker or in the main process: just before each sample
    the generators are set to the sample's own stream, so its augmentations do not depend on who loads it, nor on what
    was loaded before.
    """

    def __init__(self, indices: Sequence, place: tuple, first: int, step: int) -> None:
        self.indices = list(indices)
        self.place, self.first, self.step = place, first, step

    def __iter__(self) -> Iterator:
        for number, index in enumerate(self.indices):
            set_generators(seed_of(*self.place, self.first + number * self.step))
            yield index

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number):
        return self.indices[number]


class PlacedBatches:
    """A batch sampler whose order and batches are a function of seed and epoch, and which can start anywhere.

    The wrapped sampler draws from generators of its own, so an order from torch's or numpy's global ones is the same
    again. Skipped batches cost their indices only.

    Args:
        inner: the batch sampler.
        seed: seed of the run.
        rank: rank of this process.
        world_size: number of processes. With mmengine's samplers the p-th sample of rank r is sample p * W + r of one
            process, and it gets the same stream there.

    Attributes:
        epoch: set by whoever starts the next pass.
        skip: batches that the next pass leaves out.
        endless: whether a skip goes on into the following passes.
    """

    def __init__(self, inner, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.inner = inner
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = self.skip = 0
        self.endless = False

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str):
        if name == 'inner':  # while unpickling
            raise AttributeError(name)
        return getattr(self.inner, name)

    def start(self, epoch: int, skip: int = 0) -> None:
        """Prepares the next pass; its samplers hear of the epoch as mmengine tells them."""
        self.epoch, self.skip = epoch, skip
        sampler: Any = getattr(self.inner, 'sampler', None)
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[PlacedBatch]:
        skip, self.skip = self.skip, 0
        while True:
            skipped = 0
            for batch in self._pass(self.epoch):
                if skipped == skip:
                    yield batch
                else:
                    skipped += 1
            skip -= skipped
            if skip == 0 or not self.endless or skipped == 0:
                return
            self.start(self.epoch + 1)

    def _pass(self, epoch: int) -> Iterator[PlacedBatch]:
        generators = OwnGenerators(seed_of(self.seed, 'order', epoch))
        with generators:
            batches = iter(self.inner)
        place, position = (self.seed, 'sample', epoch), 0
        while True:
            with generators:
                batch: Any = next(batches, _END)
            if batch is _END:
                return
            first = position * self.world_size + self.rank
            yield PlacedBatch(batch, place, first, self.world_size)
            position += len(batch)
