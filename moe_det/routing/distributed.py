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


def gather_over_ranks(local: Tensor) -> tuple[Tensor, int]:
    """Joins the rows of all processes, for a function of pairs of rows.

    The gradient with respect to the local rows is multiplied by the number of processes, for the reason that
    :func:`sum_over_ranks` gives: every process computes the same function of all rows.

    Args:
        local: (R, D) this process's rows; R may differ between processes, a process without rows may have any D.

    Returns:
        The rows in the order of the ranks, and the position of the first local one.

    Raises:
        ValueError: processes have rows of different D.
    """
    rank, num_ranks = world()
    if num_ranks == 1:
        return local, 0
    shapes = torch.zeros(num_ranks, 2, dtype=torch.long, device=local.device)
    for axis, length in enumerate(local.shape):
        shapes[rank, axis].fill_(length)  # no copy to the device that the host would wait for
    dist.all_reduce(shapes)  # a sum of one entry each: gathers in one call with every backend
    lengths = shapes.tolist()
    widths = {width for rows, width in lengths if rows}
    if len(widths) > 1:
        raise ValueError(f'the processes hold rows of different length: {sorted(widths)} values')
    padded = local.new_zeros(max(rows for rows, _ in lengths), max(widths, default=local.shape[1]))
    padded[: len(local)] = local.detach() if len(local) else 0
    parts = [torch.empty_like(padded) for _ in range(num_ranks)]
    dist.all_gather(parts, padded)
    parts = [part[:rows] for part, (rows, _) in zip(parts, lengths, strict=True)]
    if local.requires_grad and len(local):
        parts[rank] = parts[rank] + num_ranks * (local - local.detach())
    return torch.cat(parts), sum(rows for rows, _ in lengths[:rank])


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch gives it no types
def in_backward() -> bool:
    """True while autograd runs a backward pass, that is, when a forward is a recomputation of a checkpointed one."""
    return torch._C._current_graph_task_id() != -1
