"""Mixed precision for ``--amp``: fp16 with a loss scale on a GPU, bfloat16 on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

from ..common.console import warn
from ..errors import MoEConfigError


class CPUAmpOptimWrapper(OptimWrapper):
    """Trains under bfloat16 autocast on a CPU, where mmengine's AmpOptimWrapper refuses to be built.

    bfloat16 has the exponent range of fp32, so gradients do not underflow and no loss scale is needed. Weights and
    optimizer states stay fp32; checkpoints are those of a plain OptimWrapper.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Runs the forward pass of one step in bfloat16 where that is safe, within gradient accumulation's context."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield


def enable_amp(cfg: Config) -> None:
    """Switches the config's optimizer wrapper to mixed precision on this machine's device, in place.

    On a GPU the wrapper becomes mmengine's ``AmpOptimWrapper`` with a dynamic loss scale, unless the config has one
    with settings of its own. On a CPU it becomes :class:`CPUAmpOptimWrapper`.

    Raises:
        MoEConfigError: the config has no optimizer wrapper, or one of another kind.
    """
    wrapper = cfg.get('optim_wrapper')
    name = (wrapper or {}).get('type', 'OptimWrapper')
    name = getattr(name, '__name__', name).rpartition('.')[2]
    if not wrapper or name not in ('OptimWrapper', 'AmpOptimWrapper', 'CPUAmpOptimWrapper'):
        raise MoEConfigError(
            f"--amp: {cfg.filename}: optim_wrapper is {wrapper and name!r}, expected type='OptimWrapper' or "
            "'AmpOptimWrapper'"
        )
    if get_device() == 'cpu':
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        wrapper.type = 'CPUAmpOptimWrapper'
        warn('mixed precision on a CPU means bfloat16 (no loss scale), and pays off only on CPUs with bfloat16 units')
    elif name != 'AmpOptimWrapper':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')


def amp_for_this_device(cfg: Config) -> None:
    """Lets a config that asks for ``AmpOptimWrapper`` run on a CPU, and one written on a CPU run on a GPU, in place."""
    name = (cfg.get('optim_wrapper') or {}).get('type')
    name = str(getattr(name, '__name__', name)).rpartition('.')[2]
    on_cpu = get_device() == 'cpu'
    if (name == 'AmpOptimWrapper' and on_cpu) or (name == 'CPUAmpOptimWrapper' and not on_cpu):
        enable_amp(cfg)
