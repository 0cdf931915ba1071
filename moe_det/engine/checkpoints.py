"""Finding, checking and telling apart checkpoint files."""

from __future__ import annotations

import glob
import hashlib
import os
import zipfile
from collections.abc import Sequence

import torch

from ..analysis.comparison import refuse_equal
from ..errors import CheckpointError
from .config_edit import is_remote
from .console import near


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
    from .trained_model import read_checkpoint, state_of  # which imports this module

    digest = hashlib.sha256()
    for name, tensor in sorted(state_of(read_checkpoint(path), path).items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        # bytes: NumPy has no bfloat16
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def refuse_equal_weights(checkpoints: Sequence[str]) -> None:
    """Refuses checkpoints that are to stand for several trainings but hold the same weights.

    Args:
        checkpoints: files or URLs.

    Raises:
        DataError: two hold the same weights, under whatever names.
        CheckpointError: one cannot be read.
    """
    if len(checkpoints) > 1:
        refuse_equal([(path, weights_sha256(path)) for path in checkpoints])
