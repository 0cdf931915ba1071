"""What all measurements of moe_speed.py share."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from moe_det.common.console import say

from .clock import interleave, summary
from .record import Record

if TYPE_CHECKING:
    from .plan import Plan

PHASES = ('training', 'inference')


class Sections:
    """Measures by a plan; each measurement goes into the record as soon as it is done.

    Args:
        plan: what to measure.
        record: takes the results.
        made: machine, versions and command.
    """

    def __init__(self, plan: Plan, record: Record, made: dict) -> None:
        self.plan, self.record, self.made = plan, record, made

    def _keep(self, section: str, name: str, settings: dict, measure: Callable[..., dict], *given: object) -> None:
        """Records ``measure(*given)``, unless a resumed record has it; out of memory is a result too."""
        if self.record.has(section, name, settings):
            say(f'{section}, {name}: in the record')
            return
        try:
            results = measure(*given)
        except torch.cuda.OutOfMemoryError:
            results = {'error': 'out of memory'}
        if self.plan.device.startswith('cuda'):
            gc.collect()
            torch.cuda.empty_cache()
        self.record.measured(section, name, settings, self.made, results)
        brief = {key: value['median'] for key, value in results.get('ratios', {}).items()}
        say(f'{section}, {name}: {results.get("error") or brief or "done"}')

    def _time(self, runs: dict[str, Callable], rounds: int, marks: bool = False) -> dict:
        return interleave(runs, rounds, min(self.plan.warm_up, rounds), self.plan.device, marks)

    def _totals(self, runs: dict[str, Callable], rounds: int, marks: bool = False) -> dict[str, list[float]]:
        return {name: phases['total'] for name, phases in self._time(runs, rounds, marks).items()}


def times_and_ratios(of: dict[str, list[float]], ratios: dict[str, dict]) -> dict:
    """What the record keeps of runs.

    Args:
        of: seconds by name.
        ratios: between them.
    """
    return {'times': {name: summary(seconds) for name, seconds in of.items()}, 'ratios': ratios}
