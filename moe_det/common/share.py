"""Work that several processes share through a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A process's part of work that several processes do through a common folder.

    Attributes:
        rank: number of this process.
        processes: how many there are.
        wait: returns when every process has called it.
    """

    rank: int = 0
    processes: int = 1
    wait: Callable[[], None] = lambda: None


ALONE = Share()
