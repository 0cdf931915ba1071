"""Names of a plain RetinaNet head's tensors, and of the same tensors in an expert that stands in their place.

A shard holds a slice of them: :func:`shard_axis` says which.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal


def _replaced_conv(placement: str, stacked_convs: int) -> int:
    return 0 if placement == 'first' else stacked_convs - 1


def dense_name(branch: str, name: str, placement: str, stacked_convs: int) -> str:
    """Name of an expert's tensor -> the name that a plain head gives the tensor in its place."""
    if placement in ('first', 'last'):
        return f'{branch}_convs.{_replaced_conv(placement, stacked_convs)}.{name}'
    part, rest = name.split('.', 1)
    if part == 'conv':
        return f'{branch}_convs.{_replaced_conv(placement, stacked_convs)}.{rest}'
    return f'retina_{branch}.{rest}' if part == 'predictor' else f'{branch}_convs.{rest}'


def replaced_keys(keys: Iterable[str], prefix: str, branch: str, placement: str, stacked_convs: int) -> dict[str, str]:
    """Keys of a plain head that a branch's experts replace -> their names inside an expert.

    Args:
        keys: of a checkpoint.
        prefix: of the head in it, such as ``'bbox_head.'``.
        branch: ``'cls'`` or ``'reg'``.
        placement: what an expert replaces.
        stacked_convs: convolutions of the plain tower.
    """
    found = {}
    convs, predictor = f'{prefix}{branch}_convs.', f'{prefix}retina_{branch}.'
    for key in keys:
        if key.startswith(convs):
            number, name = key[len(convs) :].split('.', 1)
            if placement in ('branch', 'tower'):
                found[key] = f'convs.{number}.{name}'
            elif int(number) == _replaced_conv(placement, stacked_convs):
                found[key] = f'conv.{name}' if placement == 'shards' else name
        elif key.startswith(predictor) and placement in ('branch', 'shards'):
            found[key] = f'predictor.{key.rsplit(".", 1)[1]}'
    return found


def shard_axis(name: str) -> int | Literal['sum']:
    """How the shards' tensors of this name make up the plain head's.

    Returns:
        The axis along which they lie side by side, or ``'sum'``.
    """
    axes: dict[str, int | Literal['sum']] = {'predictor.weight': 1, 'predictor.bias': 'sum'}
    return axes.get(name, 0)
