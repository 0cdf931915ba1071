"""What a case of the device check computes, and how often the host waited meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class Watch:
    """Keeps a case's numbers.

    Args:
        device: ``'cpu'``, or ``'cuda'`` on the pretended GPU.

    Attributes:
        values: name -> copy on the CPU.
        waits: name of a stretch of the case -> place -> how often the host waited there for the device.
        copies: the same of copies to the device that the host did not wait for.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.values: dict[str, Tensor] = {}
        self.waits: dict[str, dict[str, int]] = {}
        self.copies: dict[str, dict[str, int]] = {}

    def keep(self, prefix: str, values: dict) -> None:
        """Keeps the tensors of a dict."""
        for name, value in values.items():
            if isinstance(value, Tensor):
                self.values[f'{prefix} {name}'] = value.detach().cpu().clone()

    @contextmanager
    def counted(self, name: str, folder: str = 'moe_det') -> Iterator[None]:
        """Counts what a folder of the checkout makes the host wait for meanwhile."""
        gpu = sys.modules.get('pretended_gpu')
        if gpu is not None:
            gpu.waits.clear(), gpu.copies.clear()
        yield
        if gpu is not None:
            self.waits[name] = gpu.in_folder(gpu.waits, folder)
            self.copies[name] = gpu.in_folder(gpu.copies, folder)
