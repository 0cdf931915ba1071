"""Reads pretrained weights and puts them into a backbone, all of them or none.

The files name their tensors in their own ways, yet all list them in the order in which data pass through the network,
as a module's ``state_dict`` does. So tensors are matched by order, and each must have the kind (weight, bias, running
mean ...) and the shape of its place; what a classifier has after the backbone is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moe_det.common.checkpoints import check_checkpoint, read_checkpoint, state_of
from moe_det.errors import CheckpointError

WHERE = '--weights'
CONVOLUTIONS = 34  # of NanoDet-g, with pyramid and head
OF_HEAD = {28: 60, 29: 62, 30: 66, 31: 68, 32: 70, 33: 72}  # convolution -> number of its bias; else twice its own


def torch_tensors(path: str) -> dict[str, Tensor]:
    """Tensors of a file of torch.

    Raises:
        CheckpointError: it is missing, truncated or no checkpoint.
    """
    path = check_checkpoint(path, WHERE)
    return state_of(read_checkpoint(path), path)


def nanodet_tensors(path: str) -> dict[str, Tensor]:
    """Weights and biases of NanoDet-g's convolutions, ``'0.weight'``, ``'0.bias'``, ``'1.weight'``, ...

    Args:
        path: the json of a tfjs graph; the files of numbers that it names lie beside it. Convolution i has the weight
            ``split_i`` (``split`` for 0), height x width x inputs x outputs, and the bias ``unknown_2i``.

    Raises:
        CheckpointError: a file is missing, truncated or another graph.
    """
    arrays = _read_tfjs(Path(path))
    found = {}
    for number in range(CONVOLUTIONS):
        names = {
            'weight': f'split_{number}' if number else 'split',
            'bias': f'unknown_{OF_HEAD.get(number, 2 * number)}',
        }
        for kind, name in names.items():
            if name not in arrays:
                raise CheckpointError(
                    f'{WHERE}: {path} is not NanoDet-g: it has no tensor {name!r}, expected {CONVOLUTIONS} convolutions'
                )
            tensor = torch.from_numpy(arrays[name].astype(np.float32))
            found[f'{number}.{kind}'] = tensor.permute(3, 2, 0, 1).contiguous() if tensor.dim() == 4 else tensor
    return found


def _read_tfjs(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a tfjs graph by the last part of their names."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise CheckpointError(f'{WHERE}: {path} cannot be read: {error.strerror}') from error
    except ValueError as error:  # no text, or no json
        raise CheckpointError(
            f'{WHERE}: {path} is not the json of a tfjs graph ({error}); expected nanodet.json, beside nanodet.bin'
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get('weightsManifest'), list):
        raise CheckpointError(f"{WHERE}: {path} is not a tfjs graph: the list 'weightsManifest' is missing")
    found = {}
    for group in content['weightsManifest']:
        files = [path.parent / name for name in group['paths']]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(f'{WHERE}: {path} names {missing[0]}, which does not exist: keep both in one folder')
        data, at = b''.join(file.read_bytes() for file in files), 0
        for entry in group['weights']:
            kind = np.dtype((entry.get('quantization') or entry)['dtype'])
            count = math.prod(entry['shape'])
            end = at + count * kind.itemsize
            if end > len(data):
                raise CheckpointError(
                    f'{WHERE}: {files[-1]} is truncated: it ends at byte {len(data)}, and {entry["name"]} at {end}'
                )
            array = np.frombuffer(data, kind, count, at).reshape(entry['shape'])
            found[entry['name'].rpartition('/')[2]] = array
            at = end
    return found


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: str) -> None:
    """Puts tensors into a module in order; those behind its last one are left out.

    Args:
        module: in its ``state_dict`` order.
        tensors: of a file, by its own names.
        path: of the file, for messages.

    Raises:
        CheckpointError: too few tensors, or one of another kind or shape than its place; the module is unchanged.
    """
    state = module.state_dict()
    network = type(module).__name__
    for (name, place), (theirs, tensor) in zip(state.items(), tensors.items(), strict=False):
        same = name.rpartition('.')[2] == theirs.rpartition('.')[2] and place.shape == tensor.shape
        if not same:
            raise CheckpointError(
                f'{WHERE}: {path} does not fit {network}: {theirs} {tuple(tensor.shape)} stands where {name} '
                f'{tuple(place.shape)} is expected'
            )
    if len(tensors) < len(state):
        raise CheckpointError(
            f'{WHERE}: {path} does not fit {network}: it has {len(tensors)} tensors, expected at least {len(state)}'
        )
    module.load_state_dict(dict(zip(state, tensors.values(), strict=False)))
