"""Which machine, which software and which command a result comes from."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..version import __version__

_PACKAGES = {
    'torch': ('torch',),
    'torchvision': ('torchvision',),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    'numpy': ('numpy',),
    'scipy': ('scipy',),
    'pycocotools': ('pycocotools',),
}


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text(encoding='utf-8').splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def machine() -> str:
    """Processor, cores and accelerator."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    return f'{processor()}, {cores()} cores, {device}'


def versions() -> dict[str, str | None]:
    """Versions of what the numbers depend on."""
    found: dict[str, str | None] = {'moe_det': __version__, 'python': platform.python_version()}
    for name, packages in _PACKAGES.items():
        found[name] = next((v for v in map(_version, packages) if v), None)
    return found


def _version(package: str) -> str | None:
    try:
        return f'{version(package)}' + (f' ({package})' if package.startswith('onedl') else '')
    except PackageNotFoundError:
        return None
