"""One tensor of every expert, for initialisers that know a layer by its ``weight`` and ``bias``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


class EveryExpert:
    """Stands for tensors of one shape: a method or an index is applied to each of them.

    Args:
        tensors: at least one.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return self._joined([getattr(tensor, name) for tensor in self._tensors])

    def __getitem__(self, index: Any) -> EveryExpert:
        return EveryExpert([tensor[index] for tensor in self._tensors])

    def __setitem__(self, index: Any, value: Any) -> None:
        for tensor in self._tensors:
            tensor[index] = value

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, given: Sequence = (), named: Any = None) -> Any:
        """A function of torch, such as one of ``nn.init``, is called for each of the tensors."""
        named = named or {}
        (count,) = {len(value._tensors) for value in (*given, *named.values()) if isinstance(value, EveryExpert)}

        def of(value: Any, i: int) -> Any:
            return value._tensors[i] if isinstance(value, EveryExpert) else value

        results = [
            function(*(of(value, i) for value in given), **{key: of(value, i) for key, value in named.items()})
            for i in range(count)
        ]
        return cls._joined(results)

    @staticmethod
    def _joined(values: list[Any]) -> Any:
        """Tensors as one of these, functions as one that calls all; anything else is the same for all of them."""
        if isinstance(values[0], Tensor):
            return EveryExpert(values)
        if not callable(values[0]):
            return values[0]
        functions: list[Callable] = values
        return lambda *given, **named: EveryExpert._joined([call(*given, **named) for call in functions])
