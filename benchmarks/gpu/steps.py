"""Whole detectors on the GPU: time and memory of dense heads and heads with experts, and where a step's time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from speed.clock import Mark, interleave, ratio, summary
from speed.counters import cuda_memory, waits_by_line
from speed.detectors import (
    DENSE,
    DETECTORS,
    MATCHED,
    SHARDS,
    SMALL,
    batch,
    build,
    inference,
    loss_of,
    precision_context,
    train_step,
    with_whole_experts,
)
from speed.measurement import set_precision
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from .report import Deadline

KINDS = (DENSE, 'k=1', 'k=2', MATCHED, SHARDS[0])
PROFILED = (DENSE, 'k=2', SHARDS[0])
KINDS_SMALL = (DENSE, SHARDS[0])
SIZE, SMALL_SIZE = (800, 1344), (64, 64)
MOST, SEEN = 20, 3  # rounds of the times, steps under the profiler


class Steps:
    """Times steps of detectors side by side.

    Args:
        small: a narrow network on small images, which any machine can run; its times say nothing.
    """

    def __init__(self, small: bool) -> None:
        self.size = SMALL_SIZE if small else SIZE
        self.options = SMALL if small else {}
        self.kinds, self.profiled, self.rounds, self.seen = KINDS, PROFILED, MOST, SEEN
        if small:
            self.kinds, self.profiled, self.rounds, self.seen = KINDS_SMALL, KINDS_SMALL, 1, 1
        # most telling first, in case the time runs out
        self.batches = (2,) if small else (8, 16, 2, 1)
        self._models: dict[str, nn.Module] = {}

    def _model(self, kind: str) -> nn.Module:
        if kind not in self._models:
            config, options = DETECTORS[kind]
            self._models[kind] = build(config, {**options, **self.options}, 'cuda', max(self.batches))
        return self._models[kind]

    def speed(self, deadline: Deadline) -> dict:
        """Times of training step and inference, and memory of a training step.

        Returns:
            Case, as ``B=8, fp16`` -> ``training``, ``inference`` and ``memory`` -> kind of head -> numbers.
        """
        cases = [(images, precision) for images in self.batches for precision in ('fp16', 'tf32')]
        found = {}
        for number, (images, precision) in enumerate(cases):
            share = deadline.left() / (len(cases) - number)
            if share < 1:
                break
            try:
                found[f'B={images}, {precision}'] = self._case(images, precision, share)
            except torch.cuda.OutOfMemoryError:
                found[f'B={images}, {precision}'] = {'error': 'out of memory'}
                torch.cuda.empty_cache()
        return found

    def _case(self, images: int, precision: str, seconds: float) -> dict:
        set_precision(precision)
        models = {kind: self._model(kind) for kind in self.kinds}
        steps = {}
        for kind, model in models.items():
            steps[kind] = train_step(model.train(), batch(model, images, self.size, training=True), precision, 'cuda')
        found = {'training': _timed(steps, 0.6 * seconds, self.rounds), 'memory': {}}
        for kind, model in models.items():
            data = batch(model, images, self.size, training=True)

            def forward(model: nn.Module = model, data: dict = data) -> Tensor:
                with precision_context(precision, 'cuda')():
                    return loss_of(model, data)

            memory = cuda_memory(forward, lambda loss: loss.backward())
            found['memory'][kind] = {key: round(value / 2**20, 1) for key, value in memory.items()}
            model.zero_grad(set_to_none=True)
        runs = {}
        for kind, model in models.items():
            data = batch(model, images, self.size, training=False)
            runs[kind] = inference(with_whole_experts(model).eval(), data, precision, 'cuda')
        found['inference'] = _timed(runs, 0.3 * seconds, self.rounds)
        return found

    def profile(self, deadline: Deadline) -> dict:
        """Kernels and waits of a training step in fp16.

        Returns:
            Kind of head -> milliseconds of a step, of them with the GPU busy, launches, waits by line, and the kernels
            that take longest.
        """
        set_precision('fp16')
        found = {}
        for kind in self.profiled:
            if deadline.left() < 0:
                break
            model = self._model(kind).train()
            step = train_step(model, batch(model, self.batches[0], self.size, training=True), 'fp16', 'cuda')
            found[kind] = profiled(step, self.seen)
        return found


def _timed(runs: Mapping[str, Callable[[Mark], None]], seconds: float, most: int) -> dict:
    """Milliseconds of every run by phase, and the ratio to the first one; as many rounds as fit."""
    few = min(2, most)  # so many to warm up, and so many at least
    begin = time.monotonic()
    times = interleave(runs, few, few, 'cuda', marks=True)
    each = (time.monotonic() - begin) / (2 * few)
    more = min(most, int(seconds / each) - few) - few
    if more > 0:
        for kind, phases in interleave(runs, more, 0, 'cuda', marks=True).items():
            for phase, values in phases.items():
                times[kind][phase] += values
    first = times[next(iter(runs))]['total']
    return {
        kind: {
            'phases': {phase: summary(values) for phase, values in phases.items()},
            'of dense': ratio(phases['total'], first),
        }
        for kind, phases in times.items()
    }


def profiled(step: Callable[[Mark], None], steps: int) -> dict:
    """Where the time of a step goes."""

    def run() -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            step(lambda phase: None)
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin) / steps

    step(lambda phase: None)  # what the first one sets up does not count
    with waits_by_line() as waits:
        step(lambda phase: None)
    milliseconds = run()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
    events = seen.key_averages()
    # torch 2.4 renamed it
    busy = {e.key: getattr(e, 'self_device_time_total', None) or getattr(e, 'self_cuda_time_total', 0) for e in events}
    busy = {name: microseconds / 1e3 / steps for name, microseconds in busy.items()}
    launches = sum(event.count for event in events if 'LaunchKernel' in event.key)
    return {
        'step ms': round(milliseconds, 2),
        'GPU busy ms': round(sum(busy.values()), 2),
        'launches': launches // steps,
        'waits': dict(waits),
        'longest ms': {name[:80]: round(busy[name], 2) for name in sorted(busy, key=busy.get, reverse=True)[:12]},
    }


def search(small: bool, deadline: Deadline) -> dict:
    """What ``cudnn_benchmark=True`` costs and gains where the number of rows differs from step to step.

    As in the experts of a sparse ResNet-18, whose configs set it: two convolutions on 256 maps of 8 x 8 pixels.

    Returns:
        ``off`` and ``on`` -> mean milliseconds of a forward and backward in the first pass over all numbers of rows, in
        which a search would take place, and in the second.
    """
    convs = nn.Sequential(nn.Conv2d(256, 256, 3, 2, 1), nn.Conv2d(256, 256, 3, 1, 1)).cuda()
    numbers = range(20, 24) if small else range(20, 108)
    found = {}
    for name, on in (('off', False), ('on', True)):
        torch.backends.cudnn.benchmark = on
        passes = [[], []]
        for times in passes:
            for rows in numbers:
                if deadline.left() < 0:
                    break
                x = torch.randn(rows, 256, 8, 8, device='cuda', requires_grad=True)
                torch.cuda.synchronize()
                begin = time.perf_counter()
                convs(x).sum().backward()
                torch.cuda.synchronize()
                times.append(1e3 * (time.perf_counter() - begin))
        found[name] = {
            key: round(sum(times) / len(times), 3) if times else None
            for key, times in zip(('first pass ms', 'second pass ms'), passes, strict=True)
        }
    torch.backends.cudnn.benchmark = False
    return found
