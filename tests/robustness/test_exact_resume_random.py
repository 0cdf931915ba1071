"""Streams of random numbers by place, and batches that carry theirs."""

from __future__ import annotations

import itertools
import pickle
import random

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import BatchSampler, RandomSampler

from moe_det.robustness.exact_resume_random import PlacedBatch, PlacedBatches, seed_of, set_generators


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_places_give_streams_of_their_own():
    seeds = {seed_of(a, name, b) for a, name, b in itertools.product(range(20), ('sample', 'order'), range(50))}
    assert len(seeds) == 2000 and all(0 <= seed < 2**128 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3)
    set_generators(seed_of(0, 'a'))
    first = draws()
    assert len(set(first)) == 3
    set_generators(seed_of(0, 'b'))
    assert not set(draws()) & set(first)
    set_generators(seed_of(0, 'a'))
    assert draws() == first


def test_the_three_generators_of_a_place_are_unrelated():
    """numpy and torch use the same algorithm, so equal seeds would give equal bits."""
    set_generators(seed_of(0))
    bits = np.random.randint(0, 2**32, 50, dtype=np.uint32)
    assert not set(bits.tolist()) & set(torch.randint(0, 2**32, (50,)).tolist())


def samples_of(batch: PlacedBatch) -> list[tuple]:
    """What a fetcher does."""
    return [(index, *draws()) for index in batch]


def test_a_sample_draws_the_same_in_any_process_and_company():
    whole = PlacedBatch([5, 6, 7, 8], ('run', 3), first=8, step=1)
    expected = samples_of(whole)
    assert [sample[0] for sample in expected] == [5, 6, 7, 8] == list(whole.indices)
    assert len({number for sample in expected for number in sample[1:]}) == 12
    torch.manual_seed(1)
    assert samples_of(pickle.loads(pickle.dumps(whole))) == expected
    # two ranks of two: samples 8 and 10, 9 and 11
    ranks = [PlacedBatch(whole.indices[rank::2], ('run', 3), 8 + rank, 2) for rank in (0, 1)]
    assert samples_of(ranks[0]) == expected[::2] and samples_of(ranks[1]) == expected[1::2]


def placed(**changes) -> PlacedBatches:
    sampler = DefaultSampler(range(10), shuffle=True, seed=4)
    return PlacedBatches(BatchSampler(sampler, 3, drop_last=False), **{'seed': 4, **changes})


def indices(batches) -> list[list[int]]:
    return [batch.indices for batch in batches]


def test_passes_are_the_samplers_own_and_can_begin_anywhere():
    batches = placed()
    batches.start(2)
    sampler = DefaultSampler(range(10), shuffle=True, seed=4)
    sampler.set_epoch(2)
    order = list(sampler)
    assert indices(batches) == [order[:3], order[3:6], order[6:9], order[9:]]
    assert len(batches) == 4 and batches.batch_size == 3
    batches.start(2, skip=3)
    (last,) = batches
    assert last.indices == order[9:] and last.first == 9
    batches.start(2, skip=4)
    assert list(batches) == []
    batches.start(3)
    assert indices(batches) != [order[:3], order[3:6], order[6:9], order[9:]]


def test_an_endless_skip_goes_on_into_the_next_passes():
    batches = placed()
    batches.endless = True
    batches.start(0, skip=4 + 4 + 1)
    found = indices(batches)
    reference = placed()
    reference.start(2)
    assert found == indices(reference)[1:] and batches.epoch == 2


def test_positions_of_ranks_interleave():
    batches = placed(rank=1, world_size=2)
    batches.start(0)
    assert [(batch.first, batch.step) for batch in batches] == [(1, 2), (7, 2), (13, 2), (19, 2)]


def test_an_order_from_the_global_generators_is_found_again_and_leaves_them_alone():
    batches = PlacedBatches(BatchSampler(RandomSampler(range(10)), 3, False), seed=1)
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        batches.start(0)
        found = []
        for batch in batches:
            found.append(batch.indices)
            before = torch.rand(())
        orders.append(found)
        torch.manual_seed(seed)
        assert torch.equal(torch.stack([torch.rand(()) for _ in found])[-1], before)
    assert orders[0] == orders[1]
