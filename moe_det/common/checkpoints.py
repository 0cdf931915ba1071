"""Finding, checking and telling apart checkpoint files."""

from __future__ import annotations

import glob
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from ..errors import CheckpointError
from .config_edit import is_remote
from .console import near

KEYS_LISTED = 3


def check_checkpoint(path: str, where: str) -> str:
    """Returns ``path`` if a checkpoint can be read from there; URLs and names such as ``torchvision://`` pass.

    Args:
        path: the file.
        where: the argument or config key it came from, for the message.

    Raises:
        CheckpointError: there is no such file, or it is empty, truncated or no checkpoint.
    """
    if is_remote(path):
        return path
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        names = sorted(os.path.basename(name) for name in glob.glob(os.path.join(glob.escape(path), '*.pth')))
        held = f'; it holds {", ".join(names[:8])}' if names else ''
        raise CheckpointError(f'{where}: {path} is a folder, expected a checkpoint file{held}')
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or '.'
        names = [name for name in os.listdir(folder) if name.endswith('.pth')] if os.path.isdir(folder) else []
        hint = near(os.path.basename(path), sorted(names))
        if not hint and names:
            hint = f' {folder} holds {", ".join(sorted(names)[:8])}.'
        raise CheckpointError(f'{where}: {path} does not exist (looked for {os.path.abspath(path)}).{hint}')
    with open(path, 'rb') as file:
        start = file.read(4)
    # torch writes zip archives, whose directory is at the end; before torch 1.6 it wrote pickles
    if not (zipfile.is_zipfile(path) if start.startswith(b'PK') else start.startswith(b'\x80')):
        size = os.path.getsize(path)
        state = 'truncated' if start.startswith(b'PK') else f'no checkpoint (it begins with {start!r})'
        raise CheckpointError(f'{where}: {path} ({size} bytes) is {state if size else "empty"}')
    return path


def latest_checkpoint(work_dir: str) -> str | None:
    """Returns the checkpoint that training in ``work_dir`` saved last, or None before the first one.

    mmengine notes an absolute path in ``last_checkpoint``; in a folder that was moved since, the file is next to the
    note.
    """
    note = os.path.join(work_dir, 'last_checkpoint')
    if not os.path.isfile(note):
        return None
    with open(note, encoding='utf-8') as file:
        noted = file.read().strip()
    here = os.path.join(work_dir, os.path.basename(noted))
    return next((path for path in (noted, here) if os.path.isfile(path)), None)


def best_checkpoint(work_dir: str) -> str | None:
    """Returns the newest ``best_*.pth`` that mmengine's CheckpointHook kept in ``work_dir``, or None."""
    found = glob.glob(os.path.join(glob.escape(work_dir), 'best_*.pth'))
    return max(found, key=os.path.getmtime, default=None)


def file_sha256(path: str) -> str:
    """Returns the SHA-256 of a file's bytes; for a URL, of its name."""
    if is_remote(path):
        return hashlib.sha256(path.encode()).hexdigest()
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def weights_sha256(path: str) -> str:
    """Returns a SHA-256 of a checkpoint's weights: the same for a copy that was renamed or saved again.

    Names, types, shapes and values of the tensors count; their order, the optimizer's state and notes do not.

    Args:
        path: file or URL.

    Raises:
        CheckpointError: it cannot be read, or holds no weights.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state_of(read_checkpoint(path), path).items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        # bytes: NumPy has no bfloat16
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_checkpoint(path: str) -> Mapping:
    """Reads a checkpoint onto the CPU with ``weights_only``, which runs no code that the file may bring.

    Raises:
        CheckpointError: it cannot be read, or holds more than weights and mmengine's own log.
    """
    try:
        if is_remote(path):
            content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
        elif tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 6):
            content = torch.load(path, map_location='cpu')  # no weights_only that could read mmengine's own history
        else:
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'checkpoint {path} cannot be loaded safely: {str(error).splitlines()[0]} (it holds more than weights and '
            "mmengine's own log; save it again without the rest)"
        ) from error
    except (EOFError, RuntimeError) as error:
        raise CheckpointError(f'checkpoint {path} cannot be read: {str(error).splitlines()[0]}') from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'checkpoint {path}: expected a dict with state_dict, got {type(content).__name__}')
    return content


def state_of(content: Mapping, path: str) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint's content, under the names of an unwrapped model.

    Raises:
        CheckpointError: there are none.
    """
    state = content.get('state_dict', content)
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f'checkpoint {path} holds no weights; it has {brief(list(map(str, content)))}')
    return {re.sub(r'^module\.', '', key): value for key, value in tensors.items()}


def fill_model(model: nn.Module, state: dict[str, torch.Tensor], path: str, what: str) -> None:
    """Fills a model from weights that must fit it: no tensor is missing, left over, or of another shape.

    Args:
        model: as its config builds it.
        state: from :func:`state_of`.
        path: of the checkpoint, for messages.
        what: the model, for messages.

    Raises:
        CheckpointError: they do not fit.
    """
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # tensors of other shapes
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(f'checkpoint {path} does not match {what}: {brief(lines, 2)}') from error
    missing = [key for key in missing if not key.endswith('num_batches_tracked')]
    # mmdet 2 kept averages alongside the weights that were made of them
    unexpected = [key for key in unexpected if not key.startswith('ema_')]
    problems = []
    if missing:
        problems.append(f'it lacks {len(missing)} tensors of the model ({brief(missing)})')
    if unexpected:
        problems.append(f'it has {len(unexpected)} that the model has not ({brief(unexpected)})')
    if problems:
        raise CheckpointError(f'checkpoint {path} does not match {what}: {" and ".join(problems)}')


def brief(names: Sequence[str], limit: int = KEYS_LISTED) -> str:
    """The first names of a list, with dots if there are more."""
    return ', '.join(names[:limit]) + (', ...' if len(names) > limit else '')
