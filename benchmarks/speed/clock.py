"""Interleaved timing: A, B, C, B, A, C, ... in one process, and ratios of neighbours in time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

Mark = Callable[[str], None]
Run = Callable[..., None]


class Clock:
    """Seconds of one run and of its phases: wall time, on a GPU between CUDA events.

    The device is idle when a run starts and done when it stops; in between nothing waits, so that launches overlap with
    kernels as they do in use.

    Args:
        device: ``'cpu'`` or ``'cuda'``.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith('cuda')

    def start(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.mark('start')

    def mark(self, phase: str) -> None:
        """Ends a phase."""
        if self._cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((phase, now))

    def stop(self) -> dict[str, float]:
        """Phase -> seconds; ``total`` is all of it."""
        self.mark('total')
        if self._cuda:
            torch.cuda.synchronize()
        times = [at for _, at in self._marks]
        phases = zip(self._marks[1:-1], times, strict=False)  # each with the end of the one before
        seconds = {phase: self._between(last, at) for (phase, at), last in phases}
        return {**seconds, 'total': self._between(times[0], times[-1])}

    def _between(self, first: float | torch.cuda.Event, last: float | torch.cuda.Event) -> float:
        return first.elapsed_time(last) / 1e3 if self._cuda else last - first


def order_of(names: list[str], round_number: int) -> list[str]:
    """The names in random order, another in each round, the same in every run of the benchmark.

    A run finds the caches and the heap as its predecessor left them; with a fixed order that would always be the same.
    """
    return [str(name) for name in np.random.default_rng(round_number).permutation(names)]


def interleave(
    runs: Mapping[str, Run], rounds: int, warm_up: int, device: str, marks: bool = False
) -> dict[str, dict[str, list[float]]]:
    """Times several runs in turn, in another order in each round.

    Args:
        runs: name -> function; with ``marks`` it takes a function that ends a phase.
        rounds: how often all of them run and are timed.
        warm_up: rounds before that are not (allocator, algorithm choice, lazy initialisation).
        device: ``'cpu'`` or ``'cuda'``.
        marks: whether the runs tell their phases.

    Returns:
        name -> phase -> seconds of every round; the i-th numbers of all names belong to one round.
    """
    clock = Clock(device)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in runs}
    enabled = gc.isenabled()
    gc.disable()
    gc.freeze()  # a collection between rounds then looks at new objects alone, which is quick
    try:
        for number in range(warm_up + rounds):
            gc.collect()
            for name in order_of(list(runs), number):
                clock.start()
                if marks:
                    runs[name](clock.mark)
                else:
                    runs[name]()
                for phase, seconds in clock.stop().items():
                    if number >= warm_up:
                        times[name].setdefault(phase, []).append(seconds)
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
    return times


def summary(seconds: list[float]) -> dict:
    """Median and quartiles of times, in milliseconds."""
    low, middle, high = (float(value) for value in np.percentile(np.array(seconds) * 1e3, [25, 50, 75]))
    return {'median_ms': round(middle, 4), 'quartiles_ms': [round(low, 4), round(high, 4)], 'n': len(seconds)}


def ratio(of: list[float], to: list[float], resamples: int = 2000) -> dict:
    """Median of the rounds' own ratios, with its 95 % bootstrap interval and the quartiles of the ratios.

    Pairing a run with its neighbour in time takes out what slows the whole machine for a while.
    """
    ratios = np.array(of) / np.array(to)
    rng = np.random.default_rng(0)
    medians = np.median(ratios[rng.integers(len(ratios), size=(resamples, len(ratios)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    first, third = np.percentile(ratios, [25, 75])
    return {
        'median': round(float(np.median(ratios)), 4),
        'ci95': [round(float(low), 4), round(float(high), 4)],
        'quartiles': [round(float(first), 4), round(float(third), 4)],
        'n': len(ratios),
    }
