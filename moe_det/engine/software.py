"""Which software and which command a result comes from."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..version import __version__

_PACKAGES = {
    'torch': ('torch',),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    'numpy': ('numpy',),
    'scipy': ('scipy',),
    'pycocotools': ('pycocotools',),
}


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


def command_line() -> str:
    """The command line of this process, as one would type it."""
    return shlex.join([Path(sys.executable).name, *sys.argv])
