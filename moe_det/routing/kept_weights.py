"""Weights that initialisers around them must not change."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class KeptWeights:
    """A module's parameters as they are when this context begins, or as a checkpoint leaves them that is loaded inside.

    Detectors initialise all that lies below them, in ways that know nothing of experts: the DETR family draws every
    matrix of its encoder and decoder, heads every convolution. Inside the context they do as they like.

    Args:
        module: whose parameters are remembered.
        loaded: the module whose loading counts; by default the same.
    """

    def __init__(self, module: nn.Module, loaded: nn.Module | None = None) -> None:
        self.module = module
        self._loaded = module if loaded is None else loaded
        self._is_loading = False

    def __enter__(self) -> KeptWeights:
        self.note()
        self._handles = [
            self._loaded._register_load_state_dict_pre_hook(self._before_loading),
            self._loaded.register_load_state_dict_post_hook(self._after_loading),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def note(self) -> None:
        """Remembers the parameters as they are now."""
        self._values = {name: value.detach().clone() for name, value in self.module.named_parameters()}

    def changed(self) -> bool:
        """Whether parameters are no longer as remembered."""
        return any(not torch.equal(value, self._values[name]) for name, value in self.module.named_parameters())

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the parameters the remembered values."""
        for name, value in self.module.named_parameters():
            value.copy_(self._values[name])

    def _before_loading(self, state_dict: Mapping[str, Tensor], prefix: str, *others: Any) -> None:
        self._is_loading = any(key.startswith(prefix) for key in state_dict)
        if self._is_loading:
            self.restore()  # of what the checkpoint lacks

    def _after_loading(self, *others: Any) -> None:
        if self._is_loading:
            self.note()
        self._is_loading = False


class OwnStart(KeptWeights):
    """A context after which a module is as it was, whatever initialisers did inside."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.restore()
