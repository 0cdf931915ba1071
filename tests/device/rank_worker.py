"""One of two processes that share a training: rank_worker.py RANK PORT FOLDER, through start.py.

Gloo carries what they tell each other, under NCCL's rules: everything runs as with the backend ``nccl``, and a
collective that is given a tensor of the CPU, or one that is not contiguous, raises.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from running.detector_runs import CASES, trained

COLLECTIVES = ('all_gather', 'all_gather_into_tensor', 'all_reduce', 'broadcast', 'reduce')


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """All tensors of arguments."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


def under_nccl_rules(name: str, collective: Callable) -> Callable:
    """The collective, which refuses what NCCL refuses."""

    @functools.wraps(collective)
    def checked(*args, **kwargs):
        for tensor in tensors_in([*args, *kwargs.values()]):
            if not tensor.is_cuda or not tensor.is_contiguous():
                raise RuntimeError(f'{name}: NCCL takes contiguous CUDA tensors, got {tuple(tensor.shape)} on the CPU')
        return collective(*args, **kwargs)

    return checked


def main(rank: str, port: str, folder: str) -> None:
    """Trains and writes ``rank<RANK>.pt``."""
    # one device for both
    os.environ.update(RANK=rank, WORLD_SIZE='2', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    dist.init_process_group('gloo')
    dist.get_backend = lambda group=None: 'nccl'
    for name in COLLECTIVES:
        setattr(dist, name, under_nccl_rules(name, getattr(dist, name)))
    found = trained(Path(folder) / 'ranks', 'two ranks', rank=int(rank), num_ranks=2, **CASES['soft'])
    torch.save({key: found[key] for key in ('start', 'end', 'losses')}, Path(folder) / f'rank{rank}.pt')


if __name__ == '__main__':
    main(*sys.argv[1:])
