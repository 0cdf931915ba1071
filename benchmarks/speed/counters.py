"""What does not depend on the machine's speed: saved tensors, waits for the host, convolution calls, multiply-adds."""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from common import ROOT
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from moe_det.routing import dispatch

# operators whose result the host must have before it goes on
WAITING = frozenset({'_local_scalar_dense', 'is_nonzero', 'nonzero', 'equal', 'masked_select', '_unique2'})
INDEXING = frozenset({'index', 'index_put', 'index_put_', '_index_put_impl_'})
CONVOLUTIONS = {'convolution': 'forward', 'convolution_backward': 'backward'}


class OperatorCounter(TorchDispatchMode):
    """Counts convolution calls, and operators that make the host wait for the device.

    Attributes:
        waits: operators that wait, and indexing by booleans, which must learn how many are true.
        convolutions: calls in ``'forward'`` and ``'backward'``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter = Counter()
        self.convolutions: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.waits[name] += 1
        elif name in INDEXING:
            booleans = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
            self.waits['boolean index'] += booleans
        elif name in CONVOLUTIONS:
            self.convolutions[CONVOLUTIONS[name]] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _copies_to_host() -> Iterator[list[int]]:
    """Sizes of dispatch's own copies, which are no operator of their own on a CPU."""
    sizes: list[int] = []
    original = dispatch.copy_to_host

    def counted(counts: Tensor) -> list[int]:
        sizes.append(counts.numel())
        return original(counts)

    dispatch.copy_to_host = counted
    try:
        yield sizes
    finally:
        dispatch.copy_to_host = original


def count_operators(run: Callable[[], None]) -> dict:
    """Host copies and convolution calls of one run."""
    with _copies_to_host() as copies, OperatorCounter() as counter:
        run()
    return {
        'host_copies': len(copies) + sum(counter.waits.values()),
        'convolutions_forward': counter.convolutions['forward'],
        'convolutions_backward': counter.convolutions['backward'],
    }


@contextmanager
def waits_by_line() -> Iterator[Counter]:
    """Counts by line of code, as a path in the checkout or in a package, where CUDA itself sees the host wait."""
    found: Counter = Counter()
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if 'synchronizing CUDA operation' in str(warning.message):
            path = Path(warning.filename)
            inside = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            found[f'{str(inside).rpartition("site-packages/")[2]}:{warning.lineno}'] += 1


def count_synchronisations(run: Callable[[], None]) -> int:
    """How often CUDA itself saw the host wait during a run."""
    run()  # what the first call sets up does not count
    torch.cuda.synchronize()
    with waits_by_line() as waits:
        run()
    return waits.total()


def count_macs(run: Callable[[], None]) -> int:
    """Multiply-adds of convolutions and matrix products of one run."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() // 2


def saved_bytes(forward: Callable[[], object], beside: Iterable[Tensor]) -> int:
    """Bytes that a training forward keeps for its backward.

    Every storage counts once and in full, however many tensors or views of it are saved.

    Args:
        forward: runs the forward and returns what holds its graph.
        beside: tensors that exist anyway (parameters, buffers, inputs) and do not count.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in beside}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that its address is not used again
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = forward()
    total = sum(storage.nbytes() for storage in kept.values())
    del graph
    return total


def cuda_memory(forward: Callable[[], Tensor], backward: Callable[[Tensor], None]) -> dict:
    """Memory of one training step by the allocator, in bytes.

    Parameters and the optimizer's state must be allocated before, gradients must not.

    Returns:
        ``activations``: what the forward leaves allocated until the backward; ``peak_beyond_state``: the most that
        was allocated during forward and backward, gradients included, above what was there before; ``peak``: with it.
    """
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = forward()
    torch.cuda.synchronize()
    kept = torch.cuda.memory_allocated() - before
    backward(loss)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return {'activations': kept, 'peak_beyond_state': peak - before, 'peak': peak}


def kept_memory(device: str, forward: Callable[[], Tensor], beside: Iterable[Tensor]) -> dict:
    """Memory that a training step takes beyond parameters: on a CPU what is saved, on a GPU also what is allocated."""
    kept = {'saved_bytes': saved_bytes(forward, beside)}
    if device.startswith('cuda'):
        kept.update(cuda_memory(forward, lambda loss: loss.backward()))
    return kept
