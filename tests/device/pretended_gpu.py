"""torch's device type ``cuda`` without a GPU: every CUDA kernel is replaced by the CPU's, on the same memory.

Importing this module switches it on; start.py preloads the runtime that it needs (shim.cpp). Everything above the
kernels is torch's own for CUDA: dispatch, autocast, autograd's device thread, allocator, generators, pinned memory.

As on a GPU an operator that is given tensors of both devices raises, and what makes the host wait for the device is
noted with its place in the code (:data:`waits`). Speed, the rounding of CUDA's kernels, their choice of algorithms and
anything asynchronous are not shown: every result is there at once.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torchvision  # noqa: F401  its operators are replaced too

# operators on memory and metadata alone: CUDA's own work on host memory
NATIVE = frozenset(
    ('alias', 'as_strided', 'detach', 'empty', 'empty_strided', 'lift', 'record_stream', 'resize_', 'set_', 'unfold')
    + ('view', '_efficientzerotensor', '_reshape_alias')
)
# written once for all devices, and so not among those registered for CUDA
SHARED = ('aten::copy_', 'aten::convolution', 'aten::convolution_backward')
# CUDA takes tensors of the host here ...
TAKES_HOST = frozenset({'aten::copy_', 'aten::index.Tensor', 'aten::_index_put_impl_'})
# ... numbers of the host (tensors without dimensions) everywhere but here
REFUSES_NUMBERS = frozenset(
    ('aten::addmm', 'aten::bmm', 'aten::cat', 'aten::convolution', 'aten::gather', 'aten::index_select', 'aten::mm')
)
# the host must know the result before it goes on
VALUE_ON_HOST = frozenset(
    ('aten::_local_scalar_dense', 'aten::_unique2', 'aten::bincount', 'aten::equal', 'aten::masked_select')
    + ('aten::multinomial', 'aten::nonzero', 'aten::repeat_interleave.Tensor', 'torchvision::nms')
)
NOWHERE = 'no Python code'
CHECKOUT = f'{Path(__file__).resolve().parents[2]}/'

# 'place: kind' -> how often the host waited; a place is file and function of the innermost code that is not torch's
waits: collections.Counter[str] = collections.Counter()
# place -> copies to the device that the host did not wait for
copies: collections.Counter[str] = collections.Counter()


def in_folder(counts: collections.Counter[str], folder: str) -> dict[str, int]:
    """Those of ``waits`` or ``copies`` in a folder of the checkout, or that no Python code called, as in a backward."""
    return {place: number for place, number in counts.items() if place.startswith((f'{folder}/', NOWHERE))}


# -- what makes the host wait ----------------------------------------------------------------------------------------


def _place() -> str:
    frame = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and not any(part in file for part in ('/torch/', '/torchvision/', '<')):
            return f'{file.removeprefix(CHECKOUT)} {frame.f_code.co_name}'
        frame = frame.f_back
    return NOWHERE


def _note(name: str, args: Sequence) -> None:
    """Notes a call for which the host waits on a GPU."""
    kind = ''
    if name == 'aten::copy_':
        to, source, *non_blocking = args
        # a copy from memory that is not pinned waits as well: torch synchronises the stream after it
        if to.is_cuda != source.is_cuda and not any(non_blocking):
            kind = 'copy to the host' if source.is_cuda else 'copy to the device'
        elif to.is_cuda and not source.is_cuda:
            copies[_place()] += 1
    elif name in VALUE_ON_HOST:
        kind = 'value'
    elif name in TAKES_HOST:
        indices = [index for index in args[1] if index is not None]
        filled = name == 'aten::_index_put_impl_' and args[2].numel() == 1 and not args[2].is_cuda  # by masked_fill
        if not filled and any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            kind = 'mask'
        elif any(not index.is_cuda for index in indices):
            kind = 'index of the host'
    if kind:
        waits[f'{_place()}: {kind}'] += 1


# -- one kernel for all operators ------------------------------------------------------------------------------------


@functools.cache
def _host_bytes(address: int, length: int) -> torch.UntypedStorage:
    """Memory of the device as a storage of the CPU, which does not own it."""
    if not length:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer((ctypes.c_char * length).from_address(address), dtype=torch.uint8).untyped_storage()


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor on the memory of a CUDA tensor."""
    memory = _host_bytes(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
    place = tensor.storage_offset(), tensor.size(), tensor.stride()
    return torch.empty(0, dtype=tensor.dtype).set_(memory, *place)


def _on_device(tensor: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """A CUDA tensor with the values of a CPU tensor; ``into`` is resized for them."""
    if into is None:
        into = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device='cuda')
    else:
        into.resize_(tensor.size())
    if tensor.numel():
        extent = 1 + sum((n - 1) * step for n, step in zip(tensor.size(), tensor.stride(), strict=True))
        ctypes.memmove(into.data_ptr(), tensor.data_ptr(), extent * tensor.element_size())
    return into


def _each(function: Callable, value: object) -> object:
    """``function`` of every leaf of lists and tuples."""
    if isinstance(value, list | tuple):
        return type(value)([_each(function, part) for part in value])
    return function(value)


class _Arguments:
    """Turns an operator's arguments into those of the CPU's kernel, and its results into those of the device."""

    def __init__(self, operator: torch._ops.OpOverload, name: str) -> None:
        self.operator, self.name = operator, name
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []  # on the device, the same on the host
        self.foreign: list[tuple[int, ...]] = []  # shapes of tensors that a GPU would not take

    def to_host(self, value: object) -> object:
        if isinstance(value, torch.Tensor):
            if value.is_cuda:
                return self._host_of(value)
            if self.name not in TAKES_HOST and (value.dim() or self.name in REFUSES_NUMBERS):
                self.foreign.append(tuple(value.shape))
        elif isinstance(value, torch.device):
            return torch.device('cpu')
        elif isinstance(value, torch.Generator):
            if value.device.type != 'cuda':
                raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({self.name})")
            return None  # its seed is passed on by _drawing
        return value

    def all_to_host(self, args: Sequence) -> list:
        """Positional arguments; torch hands numbers over as such where some operators take tensors alone."""
        values = [_each(self.to_host, value) for value in args]
        if torch._C._should_allow_numbers_as_tensors(self.operator._schema.name.partition('::')[2]):
            return values
        for i, argument in enumerate(self.operator._schema.arguments[: len(values)]):
            if isinstance(values[i], int | float) and isinstance(argument.type, torch.TensorType):
                values[i] = torch.tensor(values[i])
        return values

    def _host_of(self, tensor: torch.Tensor) -> torch.Tensor:
        for device, host in self.pairs:
            if device is tensor:
                return host
        self.pairs.append((tensor, _on_host(tensor)))
        return self.pairs[-1][1]

    def check(self) -> None:
        if self.pairs and self.foreign:
            raise RuntimeError(
                'Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! '
                f'({self.name}, a tensor of the CPU of shape {self.foreign[0]})'
            )

    def resize_outputs(self) -> None:
        for device, host in self.pairs:
            moved = host.numel() and host.data_ptr() != device.data_ptr()
            if host.shape != device.shape or moved:
                _on_device(host, into=device)

    def to_device(self, value: object) -> object:
        if not isinstance(value, torch.Tensor) or value.is_cuda:
            return value
        for device, host in self.pairs:  # an argument that was written in place stays the tensor that it is
            same = value.numel() and host.data_ptr() == value.data_ptr() and host.shape == value.shape
            if host is value or same:
                return device
        return _on_device(value)


class _drawing:  # noqa: N801  a context manager
    """Draws random numbers that follow from seed and offset of CUDA's generator, which then moves on."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator or torch.cuda.default_generators[0]

    def __enter__(self) -> None:
        self.before = torch.default_generator.get_state()
        seed = self.generator.initial_seed() * 1_000_003 + self.generator.get_offset()
        torch.default_generator.manual_seed(seed % 2**62)
        self.generator.set_offset(self.generator.get_offset() + 4)

    def __exit__(self, *error) -> None:
        torch.default_generator.set_state(self.before)


def _kernel(operator: torch._ops.OpOverload, name: str, *args, **kwargs) -> object:
    """What CUDA's kernel of any operator is replaced by."""
    _note(name, args)
    arguments, generator = _Arguments(operator, name), kwargs.get('generator')
    host_args = arguments.all_to_host(args)
    host_kwargs = {key: _each(arguments.to_host, value) for key, value in kwargs.items()}
    if host_kwargs.get('pin_memory'):
        host_kwargs['pin_memory'] = False
    arguments.check()
    if torch.Tag.nondeterministic_seeded in operator.tags:
        with _drawing(generator):
            result = operator(*host_args, **host_kwargs)
    else:
        result = operator(*host_args, **host_kwargs)
    arguments.resize_outputs()
    return _each(arguments.to_device, result)


def _replace_kernels() -> list[torch.library.Library]:
    """Replaces every kernel that is registered for CUDA; returns what must be kept so that it stays so."""
    libraries = []
    registered = torch._C._dispatch_get_registrations_for_dispatch_key('CUDA')
    for namespace, more in (('aten', SHARED), ('torchvision', ())):
        library = torch.library.Library(namespace, 'IMPL')
        for name in sorted({*registered, *more}):
            own, _, signature = name.partition('::')
            base, _, overload = signature.partition('.')
            if own != namespace or base in NATIVE or base.startswith('empty') or 'sparse' in base:
                continue
            operator = getattr(getattr(getattr(torch.ops, namespace), base), overload or 'default')
            library.impl(name, functools.partial(_kernel, operator, name), 'CUDA')
        libraries.append(library)
    return libraries


torch.backends.cudnn.enabled = False
torch.cuda.init()
with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Warning only once')  # that kernels are replaced
    _libraries = _replace_kernels()
