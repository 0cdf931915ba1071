"""When the classes of the package are registered: as soon as MMDetection is there, and not before.

``import moe_det`` imports nothing else, so that :mod:`moe_det.routing` and :mod:`moe_det.analysis` work without
mmdet, mmengine and mmcv, and commands answer at once. Importing :mod:`moe_det.registry` checks the stack and registers
everything. That happens when a config imports the package, when a part of it needs mmdet, or when mmcv or mmdet
are imported after it.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_STACK = ('mmengine', 'mmcv', 'mmdet')


def register_with_mmdet() -> None:
    """Registers the classes now if the process uses MMDetection already, else once mmcv or mmdet have been imported.

    Raises:
        StackError: the process uses MMDetection, and its packages do not fit together.
    """
    if any(name in sys.modules for name in _STACK):
        _register()
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    importlib.import_module('.registry', __package__)


class _Watcher(MetaPathFinder):
    """Finds mmcv and mmdet as the other finders do, and registers the package's classes after their import."""

    def __init__(self) -> None:
        self._asking = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in ('mmcv', 'mmdet') or self._asking:
            return None
        self._asking = True
        try:
            spec = find_spec(name)
        finally:
            self._asking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            # mmdet imports mmcv at its beginning, and is complete only later
            if self in sys.meta_path and (name == 'mmdet' or 'mmdet' not in sys.modules):
                sys.meta_path.remove(self)
                _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one loader, on purpose
        return spec
