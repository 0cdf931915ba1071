"""Runs every case on one device and keeps what it computes: device_check.py DEVICE FOLDER [CASE ...]

The test starts it twice, on the CPU and, through start.py, on the pretended GPU, and compares. A case that raises keeps
its traceback. By hand it prints a case's waits::

    python tests/device/start.py tests/device/device_check.py cuda /tmp/check 'head: branch' 'detector: MoEConv2d'
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from device import head_cases, model_cases, run_cases, self_cases
from device.watch import Watch
from mmengine.logging import MMLogger

CASES = {**self_cases.CASES, **head_cases.CASES, **model_cases.CASES, **run_cases.CASES}


def main(device: str, folder: str, *names: str) -> None:
    """Runs the cases and writes ``<device>.pt``: by case what its :class:`Watch` kept, ``seconds`` and ``error``."""
    run_cases.FOLDER = Path(folder)
    results = {}
    for name, run in CASES.items():
        if names and name not in names:
            continue
        MMLogger.get_current_instance().setLevel(logging.ERROR)
        watch, begin, error = Watch(device), time.perf_counter(), None
        try:
            run(watch)
        except (Exception, SystemExit):
            error = traceback.format_exc()
        seconds = time.perf_counter() - begin
        results[name] = dict(values=watch.values, waits=watch.waits, copies=watch.copies, seconds=seconds, error=error)
        if names:
            print(f'{name}: {seconds:.1f} s', watch.waits, watch.copies, error or '', sep='\n')
    torch.save(results, Path(folder) / f'{device}.pt')


if __name__ == '__main__':
    main(*sys.argv[1:])
