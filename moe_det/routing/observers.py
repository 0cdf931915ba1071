"""Those who watch from outside."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


class Observers:
    """Functions that are told of something. Copies and pickles have none.

    Example:
        >>> handle = router.decided.observe(lambda routing, layout: print(routing.weights))
        >>> handle.remove()
    """

    def __init__(self) -> None:
        self._told: OrderedDict[int, Callable] = OrderedDict()

    def __len__(self) -> int:
        return len(self._told)

    def __reduce__(self) -> tuple:
        return Observers, ()

    def observe(self, see: Callable) -> RemovableHandle:
        """Tells ``see`` until the returned handle is removed."""
        handle = RemovableHandle(self._told)
        self._told[handle.id] = see
        return handle

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """While inside, nobody is told."""
        told, self._told = self._told, OrderedDict()
        try:
            yield
        finally:
            self._told = told

    def tell(self, *news: object) -> None:
        """Tells all of them, in the order in which they came."""
        for see in list(self._told.values()):
            see(*news)
