"""Which checkpoint of a work folder a run can continue from."""

from __future__ import annotations

import functools
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from ..common.checkpoints import check_checkpoint, latest_checkpoint
from ..common.config_edit import is_remote
from ..errors import CheckpointError

NEEDED = ('meta', 'state_dict', 'message_hub')  # what mmengine's Runner.resume reads


def check_resumable(path: str, where: str) -> str:
    """Returns ``path`` if a run can be resumed from there; URLs pass.

    Everything is read: the checksums of the archive, and its objects with ``weights_only``.

    Args:
        path: the file.
        where: the argument or config key it came from, for the message.

    Raises:
        CheckpointError: the file is missing, empty, truncated or damaged, holds other objects than tensors and plain
            values, or is not a checkpoint of a training run.
    """
    path = check_checkpoint(path, where)
    if not is_remote(path):
        _iteration_of(path, where)
    return path


def _iteration_of(path: str, where: str) -> int:
    status = os.stat(path)
    try:
        return _read(path, status.st_mtime_ns, status.st_size)
    except CheckpointError as error:
        raise CheckpointError(f'{where}: {path} ({status.st_size} bytes) {error}') from error.__cause__


@functools.lru_cache(maxsize=64)  # a tool and the hook ask for the same file
def _read(path: str, changed: int, size: int) -> int:
    """Reads a file, named by path, time and size, and returns the iterations done."""
    zipped = zipfile.is_zipfile(path)
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise CheckpointError(f'is damaged: the checksum of {damaged} does not match')
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=zipped or None)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f'is damaged: {error}') from error
    except pickle.UnpicklingError as error:
        cause = ' '.join(str(error).split())
        raise CheckpointError(
            f'holds objects that are not loaded because they could run code (weights_only): {cause[:200]}'
        ) from error
    missing = [key for key in NEEDED if not isinstance(content, dict) or key not in content]
    if missing:
        raise CheckpointError(
            f'is not a checkpoint of a training run: {", ".join(missing)} missing. To start from its weights, give it '
            'as load_from without resume'
        )
    meta = content['meta']
    if not all(isinstance(meta.get(key), int) for key in ('epoch', 'iter')):
        raise CheckpointError('is not a checkpoint of a training run: its meta has no epoch and iter')
    return meta['iter']


def newest_resumable(work_dir: str, warn: Callable[[str], None]) -> str | None:
    """Returns the checkpoint to continue from: the last one noted, or the newest good one if that cannot be used.

    Args:
        work_dir: folder of the run.
        warn: gets one line per file that is passed over, and one that names the file taken instead.

    Returns:
        str | None: None if the folder holds no checkpoint.

    Raises:
        CheckpointError: it holds checkpoints and none can be resumed.
    """
    noted = latest_checkpoint(work_dir)
    if noted is not None:
        try:
            return check_resumable(noted, 'resume')
        except CheckpointError as error:
            warn(str(error))
    good: list[tuple[int, float, str]] = []
    bad = [noted] if noted else []
    for path in sorted(map(str, Path(work_dir).glob('*.pth'))):
        # the best ones have no optimizer
        if os.path.basename(path).startswith('best_') or (noted and os.path.samefile(path, noted)):
            continue
        try:
            check_checkpoint(path, 'resume')
            good.append((_iteration_of(path, 'resume'), os.path.getmtime(path), path))
        except CheckpointError as error:
            warn(str(error))
            bad.append(path)
    if good:
        iteration, _, path = max(good)
        reason = f'instead of {noted}' if noted else 'there is no last_checkpoint that says which is the last'
        warn(f'resume: going on from {path} (iteration {iteration}), {reason}')
        return path
    if bad:
        raise CheckpointError(
            f'resume: no checkpoint in {work_dir} can be resumed: {", ".join(map(os.path.basename, bad))}. Start again '
            'without resume, or in another work folder'
        )
    return None
