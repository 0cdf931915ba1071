"""Atomic files, complete or absent: written to a temporary file, synced, renamed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

BACKEND = 'moe_det.atomic'  # name of the file backend for mmengine's backend_args
BLOCK = 4 << 20  # bytes
_UNFINISHED = re.compile(r'\..+\.\d+\.unfinished')
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR)


def write_atomically(path: str | os.PathLike, data: bytes | memoryview | str) -> None:
    """Writes a file so that ``path`` holds, at any instant and after a power cut, its former or its new content.

    The content goes to a hidden file in the same folder (a rename is atomic within one file system only), is synced
    to the disk, and takes the name; then the folder is synced. A symbolic link stays and its target is replaced.

    Args:
        path: the file; its folder is made.
        data: the content; text is written as UTF-8.

    Raises:
        OSError: the disk is full, or the folder cannot be written; the former file is untouched, nothing is left over.
    """
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    unfinished = os.path.join(folder, f'.{name}.{os.getpid()}.unfinished')
    content = memoryview(data.encode() if isinstance(data, str) else data)
    try:
        with open(unfinished, 'wb', buffering=0) as file:
            for start in range(0, len(content), BLOCK):
                _write_block(file, content[start : start + BLOCK])
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise
    _sync_folder(folder)


def _write_block(file: FileIO, block: memoryview) -> None:
    while len(block):  # one call may write less than it was given, the next one says why
        block = block[file.write(block) :]


def _sync_folder(folder: str) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # network file systems that cannot
            raise
    finally:
        os.close(handle)


def unfinished_files(folder: str | os.PathLike) -> Iterator[Path]:
    """What a killed :func:`write_atomically` left in a folder."""
    folder = Path(folder)
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if _UNFINISHED.fullmatch(path.name) and path.is_file())


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, with :func:`write_atomically` in place of a plain write.

    Registered as ``moe_det.atomic``: ``backend_args=dict(backend='moe_det.atomic')``. Paths with a prefix such as
    ``s3://`` go to other backends.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes bytes."""
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Writes text."""
        write_atomically(filepath, obj.encode(encoding))


register_backend(BACKEND, AtomicLocalBackend, force=True)
