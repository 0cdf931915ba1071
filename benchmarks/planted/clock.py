"""Seconds and memory of one large data set, in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np

from moe_det.analysis import measure_specialization

from .routers import EXPERTS, size_router
from .scenes import coco_like, gamma_counts

OBJECTS_PER_IMAGE = 8
PERMUTATIONS = BOOTSTRAP = 10_000


def large_case(objects: int) -> dict:
    """Times 10,000 permutations and 10,000 bootstrap samples, both sizes measured.

    Args:
        objects: about how many; eight per image.
    """
    context = multiprocessing.get_context('spawn')  # a forked process would begin with this one's memory
    with context.Pool(1) as pool:
        return pool.apply(_timed, (objects,))


def _timed(objects: int) -> dict:
    rng = np.random.default_rng(0)
    scenes = coco_like(rng, gamma_counts(rng, objects // OBJECTS_PER_IMAGE, OBJECTS_PER_IMAGE))
    experts = size_router(rng, scenes, 'relative', 0.2)
    before, start, start_cpu = peak_memory(), time.perf_counter(), time.process_time()
    measure_specialization(
        scenes.image,
        scenes.level,
        experts,
        scenes.size,
        areas=scenes.area,
        num_experts=EXPERTS,
        permutations=PERMUTATIONS,
        bootstrap=BOOTSTRAP,
    )
    return {
        'objects': len(scenes.image),
        'images': scenes.num_images,
        'permutations': PERMUTATIONS,
        'bootstrap': BOOTSTRAP,
        'seconds': round(time.perf_counter() - start, 1),
        'cpu_seconds': round(time.process_time() - start_cpu, 1),
        'peak_bytes': peak_memory(),
        'peak_bytes_before': before,
    }


def peak_memory() -> int | None:
    """Most bytes of memory that this process has had; None where the system does not tell."""
    status = Path('/proc/self/status')
    if not status.is_file():
        return None
    for line in status.read_text(encoding='utf-8').splitlines():
        if line.startswith('VmHWM:'):
            return int(line.split()[1]) * 1024
    return None
