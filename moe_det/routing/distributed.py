"""Sums over the processes of a distributed run, with the gradient that averaging processes needs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Returns (rank, number of processes); (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_ranks(local: Tensor) -> Tensor:
    """Sums a tensor over all processes so that data-parallel training equals one process.

    The value is the sum. The gradient with respect to the local part is multiplied by the number of processes,
    because ``DistributedDataParallel`` averages gradients afterwards: a function of the global sum then gets exactly
    the gradient that one process with the whole batch would compute.

    Args:
        local: this process's part; every process must call with the same shape.

    Returns:
        A tensor of the same shape; ``local`` itself outside a distributed run.
    """
    _, num_ranks = world()
    if num_ranks == 1:
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    if not local.requires_grad:
        return total
    return total + num_ranks * (local - local.detach())


@torch.compiler.assume_constant_result
def in_backward() -> bool:
    """True while autograd runs a backward pass, that is, when a forward is a recomputation of a checkpointed one."""
    return torch._C._current_graph_task_id() != -1
