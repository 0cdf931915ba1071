"""What moe_speed.py measures and how often, and what all of its measurements share."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from moe_det.common.console import say

from .clock import interleave, summary
from .layers import LayerShape, TokenShape
from .record import Record

PHASES = ('training', 'inference')


@dataclass(frozen=True)
class Plan:
    """What to measure and how often.

    Attributes:
        device: ``'cpu'`` or ``'cuda'``.
        precisions: of ``'fp32'``, ``'tf32'`` and ``'bf16'``.
        batches: B of the whole detector.
        size: height and width of its images.
        larger: further batch sizes and image sizes of it, for its times alone.
        detector_rounds: rounds of the whole detector.
        layer: size of the layer alone.
        experts: E of the layer alone.
        tokens: size of the layer of tokens.
        rounds: rounds of the layer.
        profile_rounds: rounds of the whole detector under the profiler.
        warm_up: rounds before the first that counts.
    """

    device: str
    precisions: tuple[str, ...]
    batches: tuple[int, ...]
    size: tuple[int, int]
    detector_rounds: int
    layer: LayerShape = LayerShape()
    experts: tuple[int, ...] = (2, 4, 8, 16, 32)
    tokens: TokenShape = TokenShape()
    rounds: int = 30
    profile_rounds: int = 10
    warm_up: int = 3
    larger: tuple[tuple[int, tuple[int, int]], ...] = ()

    @property
    def detector_cases(self) -> list[tuple[int, tuple[int, int]]]:
        """Batch sizes and image sizes at which the whole detector is timed."""
        return [*((images, self.size) for images in self.batches), *self.larger]

    @property
    def few_and_many(self) -> tuple[int, int] | None:
        """E = 4 and the largest E, between which nothing should change with four experts in use."""
        return (4, max(self.experts)) if 4 in self.experts and max(self.experts) > 4 else None


def quick_or_full(device: str, quick: bool) -> dict[str, object]:
    """Default values of a :class:`Plan`."""
    if device.startswith('cuda'):
        both = {'precisions': ('tf32', 'bf16'), 'size': (800, 1344)}
        few = {'batches': (1, 16), 'layer': LayerShape(16, 256, 25, 42), 'detector_rounds': 5, 'warm_up': 2}
        many = {'batches': (1, 2, 8, 16), 'layer': LayerShape(16, 256, 50, 84), 'detector_rounds': 30, 'warm_up': 10}
    else:
        both = {'precisions': ('fp32',)}
        few = {'batches': (1,), 'size': (256, 256), 'layer': LayerShape(8, 64, 20, 20), 'tokens': TokenShape(2000)}
        few |= {'detector_rounds': 3, 'warm_up': 1}
        many = {'batches': (1, 2), 'size': (320, 320), 'larger': ((1, (640, 640)),), 'detector_rounds': 30}
    return {**both, **few, 'experts': (4, 32), 'rounds': 5, 'profile_rounds': 2} if quick else {**both, **many}


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


def set_precision(precision: str) -> None:
    """Allows TF32 for ``'tf32'`` and, beside autocast, for ``'bf16'``; plain fp32 otherwise. Never searches kernels."""
    allowed = precision != 'fp32'
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    # a search would time kernels in the middle of a round, for every new number of rows again
    torch.backends.cudnn.benchmark = False
