"""Lets torch load mmengine's own checkpoints with ``weights_only=True``.

torch >= 2.6 refuses every class that nobody declared safe. A checkpoint of mmengine's Runner holds, besides tensors,
the log history: ``HistoryBuffer`` objects made of numpy arrays. Declaring those few classes keeps the protection;
switching ``weights_only`` off would run any code that a checkpoint brings.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError

# numpy arrays and numbers of these kinds may be in a checkpoint: bool, integers, floats, complex, text, bytes
_DTYPE_CODES = '?bBhHiIlLqQefdgFDGUS'


def allow_mmengine_classes() -> None:
    """Declares the classes in mmengine's checkpoints safe for ``torch.load(weights_only=True)``.

    Does nothing on torch < 2.6, whose default loads them. Running it again changes nothing.
    """
    if tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 6):
        return
    # pairs (object, name), not bare objects: onedl-mmengine adds some of the same objects around each load and removes
    # them afterwards, which would take bare ones away from everybody else
    torch.serialization.add_safe_globals(_mmengine_globals())


def refuse_unsafe_loading() -> None:
    """Makes every ``torch.load`` of this process refuse objects that could run code, whoever calls it.

    onedl-mmengine loads a checkpoint that ``weights_only`` refuses once more without it; torch's own switch, an
    environment variable, has the last word. A user who trusts a file sets ``TORCH_FORCE_WEIGHTS_ONLY_LOAD=0``.
    """
    if not os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'):  # torch refuses both
        os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')


def _mmengine_globals() -> list[Any]:
    """Returns (object, full name in the pickle) for everything that mmengine's checkpoints refer to."""
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    multiarray = (getattr(np, '_core', None) or np.core).multiarray
    plain = [HistoryBuffer, ConfigDict, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in _DTYPE_CODES}]
    allowed = [(cls, f'{cls.__module__}.{cls.__qualname__}') for cls in plain]
    # numpy 2 renamed the module, and a checkpoint may come from either
    for package in ('numpy.core', 'numpy._core'):
        allowed.append((multiarray._reconstruct, f'{package}.multiarray._reconstruct'))
        allowed.append((multiarray.scalar, f'{package}.multiarray.scalar'))
    allowed.append((_history_method, 'builtins.getattr'))
    return allowed


def _history_method(owner: object, name: str) -> object:
    """Stands for ``getattr`` in a checkpoint, and looks up nothing but a method of mmengine's HistoryBuffer.

    A HistoryBuffer is saved with its table of statistics (mean, min, ...), and pickle spells ``HistoryBuffer.mean`` as
    a call of getattr. The real getattr on any object would let a checkpoint reach code.

    Raises:
        CheckpointError: anything else is requested.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name.startswith('_'):
        raise CheckpointError(
            f'a checkpoint asks for the attribute {name!r} of {owner!r}; only methods of HistoryBuffer are allowed'
        )
    return getattr(HistoryBuffer, name)
