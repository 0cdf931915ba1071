"""Checks that the installed packages fit together, with one readable error where they do not.

mmdet exists twice under the same import names: ``onedl-mmdetection`` (with onedl-mmcv, onedl-mmengine) and ``mmdet``
(with mmcv or mmcv-lite, mmengine). Nothing here asserts an upper bound: a newer version is at most warned about.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import runpy
import sys
import warnings
from pathlib import Path

from ..errors import StackError

INSTALL_HINT = (
    'Install one of the two distributions of MMDetection 3.x into this environment:\n'
    '  pip install "moe-det[onedl]"       (onedl-mmengine, onedl-mmcv, onedl-mmdetection: the maintained one)\n'
    '  pip install "moe-det[openmmlab]"   (mmengine, mmcv-lite, mmdet, setuptools<82: what existing projects run)'
)
# package -> (oldest that works, first major version nobody has tried)
_SUPPORTED = {'mmengine': ((0, 7, 1), 1), 'mmcv': ((2, 0), 3), 'mmdet': ((3, 0), 4)}


def prepare_stack() -> None:
    """Checks torch, torchvision, mmengine, mmcv and mmdet, then fills the gaps that they leave.

    Those are an mmcv without compiled operators, torch's refusal of mmengine's checkpoints, annotation files that
    mmdet reads and pycocotools cannot evaluate, and names of this package's configs that mmengine does not know.

    Must run before anything of ``mmdet.models`` is imported; running it again changes nothing.

    Raises:
        StackError: a package is missing, too old or does not fit the others; the message says what to install.
    """
    check_torch()
    check_packages()
    from .checkpoint import allow_mmengine_classes  # here: all need what was just checked
    from .coco_files import complete_coco_files
    from .config_names import know_own_configs
    from .ops import install_ops

    install_ops()
    allow_mmengine_classes()
    complete_coco_files()
    know_own_configs()


def matching_torchvision(torch_version: str) -> str | None:
    """Returns the torchvision release made for a torch 2.x release (2.10.0 -> '0.25'), None for any other torch.

    Source: the compatibility table of the torchvision project; since torch 2.0 the minor versions differ by 15.
    """
    match = re.match(r'2\.(\d+)', torch_version)
    return f'0.{int(match.group(1)) + 15}' if match else None


def check_torch() -> None:
    """Imports torch and torchvision and touches one compiled operator of torchvision.

    Raises:
        StackError: one of them is missing, or they were not built for each other.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        raise StackError(f'PyTorch cannot be imported: {_first_line(error)}. Install torch and torchvision.') from error
    wanted = matching_torchvision(torch.__version__)
    try:
        import torchvision

        _ = torch.ops.torchvision.nms
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        found = _metadata_version('torchvision')
        release = torch.__version__.partition('+')[0]
        pair = f'torch=={release} "torchvision=={wanted}.*"' if wanted else f'torch=={release} torchvision'
        what = (
            f'torch {torch.__version__} and torchvision {found} do not fit together'
            if found
            else f'torch {torch.__version__} is installed without torchvision'
        )
        raise StackError(
            f'{what}: {_first_line(error)}.\n'
            f'torch {release} needs torchvision {wanted or "of the same release"}, and both must be the same build '
            f'(both CPU-only or both for the same CUDA). Install the pair in one command, from one source:\n'
            f'  pip install --force-reinstall {pair}'
        ) from error
    if wanted and not torchvision.__version__.startswith(f'{wanted}.'):
        warnings.warn(
            f'torch {torch.__version__} is meant for torchvision {wanted}, found {torchvision.__version__}.',
            stacklevel=2,
        )


def check_packages() -> None:
    """Checks that mmengine, mmcv and mmdet are present, new enough and importable.

    Raises:
        StackError: see the message; it names both distributions wherever one of them is the remedy.
    """
    versions = {name: _package_version(name) for name in _SUPPORTED}
    # first: next to an mmdet 2.x, a missing mmengine is not the problem
    old = [f'{name} {text}' for name, text in versions.items() if text and _numbers(text) < _SUPPORTED[name][0]]
    if old:
        minimum = ', '.join(f'{name}>={".".join(map(str, low))}' for name, (low, _) in _SUPPORTED.items())
        raise StackError(
            f'{" and ".join(old)} found: too old, moe_det extends MMDetection 3.x ({minimum}). Remove them first '
            f'(pip uninstall mmdet mmcv mmcv-full mmengine).\n{INSTALL_HINT}'
        )
    missing = [name for name, text in versions.items() if text is None]
    if missing:
        raise StackError(f'{", ".join(missing)} not found: moe_det extends MMDetection 3.x.\n{INSTALL_HINT}')
    for name, (_, untried) in _SUPPORTED.items():
        text = versions[name]
        if text and _numbers(text)[0] >= untried:
            warnings.warn(f'{name} {text} is newer than any version tried with moe_det.', stacklevel=3)
    for name in _SUPPORTED:
        _import(name, versions)
    _check_pkg_resources()


def _import(name: str, versions: dict[str, str | None]) -> None:
    """Imports one package of the stack; raises StackError in place of whatever its import raises."""
    try:
        importlib.import_module(name)
    except AssertionError as error:  # mmdet asserts the range of mmcv and mmengine that it knows
        found = ', '.join(f'{package} {text}' for package, text in versions.items())
        raise StackError(
            f'{name} refuses the installed packages ({found}): {_first_line(error)}\n'
            f'Often these are parts of two distributions. {INSTALL_HINT}'
        ) from error
    except ImportError as error:
        if 'libGL' in str(error):
            raise StackError(
                f'{name} needs OpenCV, and opencv-python needs the system library libGL.so.1, which is missing here. '
                'Use the build without windows:\n'
                '  pip uninstall -y opencv-python && pip install --force-reinstall --no-deps opencv-python-headless'
            ) from error
        if getattr(error, 'name', None) == 'pkg_resources':
            raise StackError(_pkg_resources_message()) from error
        what = f'{name} {versions[name]} cannot be imported: {_first_line(error)}'
        raise StackError(f'{what}.\n{INSTALL_HINT}') from error


def _check_pkg_resources() -> None:
    """Raises StackError when mmengine calls pkg_resources (0.10.7 does, later) and the environment has none."""
    from mmengine.utils import is_installed

    uses_it = 'pkg_resources' in is_installed.__code__.co_names
    if uses_it and 'pkg_resources' not in sys.modules and importlib.util.find_spec('pkg_resources') is None:
        raise StackError(_pkg_resources_message())


def _pkg_resources_message() -> str:
    return (
        f'mmengine {_package_version("mmengine")} needs pkg_resources, which setuptools dropped in version 82:\n'
        '  pip install "setuptools<82"'
    )


def _package_version(name: str) -> str | None:
    """Returns the version of an mm* package without importing it; None when absent, '' when it cannot be read."""
    spec = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # no origin: an empty folder of that name
        return None
    try:
        return str(runpy.run_path(str(Path(spec.origin).with_name('version.py')))['__version__'])
    except (OSError, KeyError, ImportError):
        return _metadata_version(name) or ''


def _metadata_version(distribution: str) -> str | None:
    """Returns the version in a distribution's metadata, None when there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version: '2.0.0rc4' -> (2, 0, 0); none are older than any."""
    found = re.match(r'\d+(?:\.\d+)*', version)
    return tuple(int(part) for part in found.group().split('.')) if found else ()


def _first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, without a closing full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')
