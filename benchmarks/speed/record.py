"""The record of measurements: what was measured, on what, by which command."""

from __future__ import annotations

import importlib
import json
import os
import platform
import time
from pathlib import Path

import torch
from common import RECORDS
from common.record import Sections, today

from moe_det.common.software import cores, processor

PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'moe_det')
BUSY = 0.25  # of the cores


def record_path(device: str) -> Path:
    """Where the record of ``'cpu'`` or ``'cuda'`` lies."""
    return RECORDS / f'moe_speed_{device.partition(":")[0]}.json'


def load_average() -> float | None:
    """Processes that ran or waited during the last minute, on average; None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def busy_cores(seconds: float = 2.0) -> float | None:
    """Cores that other processes keep busy right now; None where the system does not tell."""

    def used() -> float | None:
        stat = Path('/proc/stat')
        if not stat.exists():
            return None
        user, nice, system, idle, wait, *rest = (int(word) for word in stat.read_text().split('\n')[0].split()[1:9])
        return (user + nice + system + sum(rest[:2])) / os.sysconf('SC_CLK_TCK')

    before, own, start = used(), time.process_time(), time.perf_counter()
    if before is None:
        return None
    time.sleep(seconds)
    others = used() - before - (time.process_time() - own)
    return round(max(0.0, others / (time.perf_counter() - start)), 2)


def why_busy() -> str | None:
    """Says why this is no time to measure, or None.

    The load average falls slowly after work that has ended; where it is high, a look at the cores decides.
    """
    limit, load = BUSY * cores(), load_average()
    if load is None or load <= limit:
        return None
    busy = busy_cores()
    if busy is not None and busy <= limit / 2:
        return None
    now = '' if busy is None else f', {busy:g} cores busy now'
    return f'the load average is {load:g} on {cores()} cores{now} (expected at most {limit:g})'


def made_on(device: str, command: str, forced: str | None) -> dict:
    """Machine, versions and command of a measurement."""
    made = {
        'date': today(),
        'command': command,
        'cpu': processor(),
        'cores': cores(),
        'threads': torch.get_num_threads(),
        'load_before': load_average(),
        'busy_machine': forced,  # measured although others used the machine: why that was seen
        'python': platform.python_version(),
        **{name: getattr(importlib.import_module(name), '__version__', None) for name in PACKAGES},
    }
    if device.startswith('cuda'):
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        made.update(
            gpu=properties.name,
            gpu_memory_bytes=properties.total_memory,
            gpu_memory_outside_allocator=max(0, total - free - torch.cuda.memory_reserved(device)),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            cudnn_benchmark=torch.backends.cudnn.benchmark,
        )
    return made


class Record(Sections):
    """Measurements by section and name.

    Args:
        path: the file; None keeps everything in memory.
        resume: keep what is there if its settings are the same; else it is measured again.

    Raises:
        DataError: the file is no record.
    """

    def __init__(self, path: Path | None, resume: bool = False) -> None:
        super().__init__(path, 'moe_speed.py')
        self.resume = resume

    def has(self, section: str, name: str, settings: dict) -> bool:
        """Whether a resumed run need not measure this again."""
        return self.resume and self.get(section, name).get('settings') == json.loads(json.dumps(settings))

    def measured(self, section: str, name: str, settings: dict, made: dict, results: dict) -> None:
        """Adds or replaces a measurement and writes the file."""
        made = {**made, 'load_after': load_average()}
        self.add(section, name, {'settings': settings, 'made': made, 'results': results})
