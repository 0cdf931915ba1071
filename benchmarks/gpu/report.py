"""What a check of a GPU has found so far: written after each section, so that a stopped check loses nothing."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from common.record import write

from moe_det.common.console import say

LONGEST_ERROR = 2000  # characters


class Deadline:
    """The time at which a section should end.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left; negative ones when it is over."""
        return self._end - time.monotonic()


class Report:
    """Runs sections and keeps what they find.

    Args:
        path: the json to write.
        made: machine, versions and command.
        minutes: limit of all sections together.
    """

    def __init__(self, path: Path, made: dict, minutes: float) -> None:
        self.path, self.made = path, made
        self.sections: dict[str, dict] = {}
        self._all = Deadline(60 * minutes)

    def run(self, name: str, limit: float, measure: Callable[[Deadline], dict]) -> None:
        """Runs a section; an error of it is a result too, and stops no other.

        Args:
            name: of the section.
            limit: seconds after which it should end; fewer when less is left of all.
            measure: looks at the deadline between its parts, and returns what it found.
        """
        deadline, begin = Deadline(min(limit, self._all.left())), time.monotonic()
        section: dict = {}
        if deadline.left() <= 0:
            section['error'] = 'not run: no time was left'
        else:
            try:
                section['results'] = measure(deadline)
            except Exception as error:
                section['error'] = f'{type(error).__name__}: {error}'[:LONGEST_ERROR]
                section['traceback'] = traceback.format_exc()[-LONGEST_ERROR:]
        section['seconds'] = round(time.monotonic() - begin, 1)
        self.sections[name] = section
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        write(self.path, {'made': self.made, 'sections': self.sections})
        say(f'{name}: {section.get("error") or "done"} ({section["seconds"]:g} s)')
