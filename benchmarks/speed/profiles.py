"""Where a step's time goes, by kind of operator and phase, from torch's profiler."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from .clock import Mark, order_of

MARK = 'ends phase: '
SMALL_CONVOLUTIONS = 'convolutions that torch runs without oneDNN'
CONVOLUTIONS = 'convolutions'
OTHERS = 'other operators'
BETWEEN = 'between operators'
KINDS = (CONVOLUTIONS, SMALL_CONVOLUTIONS, OTHERS, BETWEEN)
ONLY_PHASE = 'inference'  # of a run that tells no phases


def kind_of(operator: str) -> str:
    """Which of ``KINDS`` an operator of torch is."""
    if 'slow_conv2d' in operator:
        return SMALL_CONVOLUTIONS
    return CONVOLUTIONS if 'conv' in operator.lower() else OTHERS


def profiled(run: Callable[[Mark], None], device: str) -> dict[tuple[str, str], float]:
    """One run under the profiler.

    Args:
        run: a step that ends its phases with the function that it gets.
        device: ``'cpu'``, or ``'cuda'``, where an operator's time is that of its kernels.

    Returns:
        (phase, operator) -> milliseconds without what the operator calls in turn; the operator ``BETWEEN`` is what
        remains of the phase, Python above all.
    """
    cuda = device.startswith('cuda')
    if cuda:
        torch.cuda.synchronize()
    phases: list[str] = []
    ends: list[float] = []

    def mark(phase: str) -> None:
        with record_function(MARK + phase):
            phases.append(phase)
            ends.append(time.perf_counter())

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        begin = time.perf_counter()
        run(mark)
        if cuda:
            torch.cuda.synchronize()
        if not phases:
            mark(ONLY_PHASE)
    events = found.events()
    limits = sorted((event.time_range.start, event.name.removeprefix(MARK)) for event in events if MARK in event.name)
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        if MARK in event.name:
            continue
        phase = next((name for limit, name in limits if event.time_range.start < limit), phases[-1])
        spent[phase, event.name] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3
    for phase, seconds in zip(phases, (b - a for a, b in zip([begin, *ends], ends, strict=False)), strict=True):
        of_phase = sum(ms for (other, _), ms in spent.items() if other == phase)
        spent[phase, BETWEEN] = max(0.0, seconds * 1e3 - of_phase)
    return dict(spent)


def profile_in_turn(
    runs: Mapping[str, Callable[[Mark], None]], rounds: int, warm_up: int, device: str
) -> dict[str, dict[tuple[str, str], float]]:
    """Profiles several runs in turn; returns the median milliseconds by name, then phase and operator."""
    found: dict[str, list[dict[tuple[str, str], float]]] = {name: [] for name in runs}
    for number in range(warm_up + rounds):
        for name in order_of(list(runs), number):
            spent = profiled(runs[name], device)
            if number >= warm_up:
                found[name].append(spent)
    return {name: _medians(of_rounds) for name, of_rounds in found.items()}


def _medians(rounds: list[dict[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    keys = dict.fromkeys(key for spent in rounds for key in spent)
    return {key: median(spent.get(key, 0.0) for spent in rounds) for key in keys}


def by_kind(spent: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    """Phase -> kind of operator -> milliseconds."""
    found: dict[str, dict[str, float]] = {}
    for (phase, operator), ms in spent.items():
        of_phase = found.setdefault(phase, dict.fromkeys(KINDS, 0.0))
        of_phase[BETWEEN if operator == BETWEEN else kind_of(operator)] += ms
    return found


def largest_differences(
    spent: Mapping[tuple[str, str], float], dense: Mapping[tuple[str, str], float], count: int = 8
) -> list[dict]:
    """The operators on which most more (or less) time is spent than in the dense model."""
    found = [
        {'phase': phase, 'operator': operator, 'ms': round(ms, 3), 'dense_ms': round(dense_ms, 3)}
        for phase, operator in {**spent, **dense}
        for ms, dense_ms in [(spent.get((phase, operator), 0.0), dense.get((phase, operator), 0.0))]
    ]
    return sorted(found, key=lambda row: -abs(row['ms'] - row['dense_ms']))[:count]
