"""Stands in for mmcv's compiled operators (``mmcv._ext``) where they are absent.

mmcv-lite and an onedl-mmcv built by pip come without ``mmcv._ext``, and mmdet cannot be used then. A module of that
name whose most needed functions call torchvision (:mod:`.kernels`, :mod:`.deform_kernels`) makes RetinaNet, Faster
R-CNN, TOOD and others train and predict; every other operator raises one clear error when called. Compiled operators
are never replaced.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from types import CodeType, FunctionType, ModuleType

from ..errors import StackError
from . import deform_kernels, kernels

EXTENSION = 'mmcv._ext'
# onedl-mmdetection's stubs raise a text that begins with the operator's name and this
_STUB_TEXT = ' requires mmcv to be compiled'
_PROVIDED = {
    'nms': kernels,
    'sigmoid_focal_loss_forward': kernels,
    'sigmoid_focal_loss_backward': kernels,
    'roi_align_forward': kernels,
    'roi_align_backward': kernels,
    'deform_conv_forward': deform_kernels,
    'deform_conv_backward_input': deform_kernels,
    'deform_conv_backward_parameters': deform_kernels,
    'modulated_deform_conv_forward': deform_kernels,
    'modulated_deform_conv_backward': deform_kernels,
}


class _Loader(importlib.abc.Loader):
    """A loader that returns the stand-in: mmengine and mmcv look it up with find_spec and pkgutil.find_loader."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing: the module is complete."""


class TorchvisionOps(ModuleType):
    """The module ``mmcv._ext`` made of torchvision's operators; any other public name is a function that raises."""

    def __init__(self) -> None:
        super().__init__(EXTENSION, __doc__)
        self.__spec__ = importlib.machinery.ModuleSpec(EXTENSION, _Loader(self), origin=__name__)
        self.__loader__ = self.__spec__.loader
        self.__package__ = 'mmcv'
        for name, module in _PROVIDED.items():
            setattr(self, name, getattr(module, name))
        # mmdet's collect_env calls these two at the start of every training
        self.get_compiler_version = lambda: f'not compiled (torchvision {kernels.torchvision.__version__} stands in)'
        self.get_compiling_cuda_version = lambda: 'not compiled'

    def __getattr__(self, name: str) -> Callable:
        # mmcv checks with hasattr at import that its operators exist; private names must stay absent, as Python probes
        # modules for __path__, __file__ and the like
        if name.startswith('_'):
            raise AttributeError(f'module {EXTENSION!r} has no attribute {name!r}')
        function = _missing_operator(name)
        setattr(self, name, function)
        return function


def _missing_operator(name: str) -> Callable:
    """Returns a function that raises StackError, naming the operator and the way to get it."""

    def missing(*args, **kwargs):
        raise StackError(
            f"the operator {name!r} needs mmcv's compiled operators, which this environment does not have; moe_det "
            f'replaces only {", ".join(_PROVIDED)}. Install an mmcv built for torch {kernels.torch.__version__}: a '
            'prebuilt wheel of mmcv where one exists, or build onedl-mmcv for the installed torch (it needs a '
            'compiler and time): MMCV_WITH_OPS=1 pip install --force-reinstall --no-deps --no-cache-dir '
            '--no-build-isolation onedl-mmcv'
        )

    missing.__name__ = missing.__qualname__ = name
    return missing


def install_ops() -> None:
    """Puts the stand-in into ``sys.modules`` unless mmcv has compiled operators, and says so once in the log.

    Parts of mmdet that were imported earlier, with stubs in place of operators, get the real functions.

    Raises:
        StackError: mmcv has compiled operators but they do not load (built for another torch).
    """
    if isinstance(sys.modules.get(EXTENSION), TorchvisionOps):
        _replace_stubs()
        return
    if _has_compiled_ops():
        return
    import mmcv

    mmcv._ext = sys.modules[EXTENSION] = TorchvisionOps()
    _replace_stubs()
    _log_once()


def ops_source() -> str:
    """Returns where mmcv's operators come from: 'compiled', 'torchvision' or 'none' (before :func:`install_ops`)."""
    module = sys.modules.get(EXTENSION)
    if isinstance(module, TorchvisionOps):
        return 'torchvision'
    return 'compiled' if module is not None or importlib.util.find_spec(EXTENSION) is not None else 'none'


def _has_compiled_ops() -> bool:
    """Returns whether ``mmcv._ext`` exists and loads; raises StackError when it exists and does not load."""
    if EXTENSION in sys.modules:
        return True
    spec = importlib.util.find_spec(EXTENSION)
    if spec is None:
        return False
    try:
        importlib.import_module(EXTENSION)
    except (ImportError, OSError) as error:
        raise StackError(
            f"mmcv's compiled operators ({spec.origin}) do not load with torch {kernels.torch.__version__}: {error}. "
            'Install an mmcv built for this torch, or one without operators (mmcv-lite, or onedl-mmcv built by pip): '
            "torchvision's stand in for them then."
        ) from error
    return True


def _log_once() -> None:
    """Logs one line, from the main process of rank 0 only."""
    from mmengine.logging import print_log

    rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))
    if rank == '0' and multiprocessing.parent_process() is None:
        print_log(
            f"moe_det: mmcv has no compiled operators; torchvision {kernels.torchvision.__version__}'s stand in "
            '(NMS, focal loss, RoIAlign, deformable convolution).',
            logger='current',
            level=logging.INFO,
        )


def _replace_stubs() -> None:
    """Gives modules that were imported before the stand-in what they would have got after it.

    onedl-mmdetection guards its imports of operators and defines stubs that raise, so a head imported before moe_det
    would fail at its first NMS; mmcv's transformer module leaves a name out.
    """
    loaded = [module for name, module in list(sys.modules.items()) if name.startswith('mmdet.') and module is not None]
    stubs = [
        (module, name, operator)
        for module in loaded
        for name, value in list(vars(module).items())
        if (operator := _stub_of(value))
    ]
    transformer = sys.modules.get('mmcv.cnn.bricks.transformer')
    incomplete = transformer is not None and not hasattr(transformer, 'MultiScaleDeformableAttention')
    if not stubs and not incomplete:
        return  # mmcv.ops is slow to import, and mmdet.models imports it anyway
    ops = importlib.import_module('mmcv.ops')
    merge_cells = importlib.import_module('mmcv.ops.merge_cells')  # the one module that mmcv.ops does not re-export
    for module, name, operator in stubs:
        if hasattr(ops, operator) or hasattr(merge_cells, operator):
            setattr(module, name, getattr(ops, operator, None) or getattr(merge_cells, operator))
    if transformer is not None and incomplete:
        vars(transformer)['MultiScaleDeformableAttention'] = ops.MultiScaleDeformableAttention


def _stub_of(value: object) -> str | None:
    """Returns the operator that a stub of onedl-mmdetection stands for, None when ``value`` is not such a stub."""
    function = value.__dict__.get('__init__') if isinstance(value, type) else value
    code = function.__code__ if isinstance(function, FunctionType) else None
    for text in code.co_consts if isinstance(code, CodeType) else ():
        if isinstance(text, str) and _STUB_TEXT in text:
            return text.partition(' ')[0]
    return None
