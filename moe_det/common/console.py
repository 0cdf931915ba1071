"""What the command-line tools print and write, once however many processes run."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import MoEConfigError


def rank() -> int:
    """Returns this process's rank, even before the process group exists (set by torchrun, Slurm or MPI)."""
    return _first_number('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def local_rank() -> int:
    """Returns this process's rank among those of its machine, even before the process group exists."""
    return _first_number('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')


def _first_number(*variables: str) -> int:
    return next((int(os.environ[name]) for name in variables if os.environ.get(name, '').isdigit()), 0)


def say(message: str) -> None:
    """Prints ``message`` once, however many processes run."""
    if rank() == 0:
        print(message, flush=True)


def warn(message: str) -> None:
    """Prints one warning line to stderr, once, however many processes run."""
    if rank() == 0:
        print(f'warning: {message}', file=sys.stderr, flush=True)


def near(name: str, known: Iterable[str], count: int = 3) -> str:
    """Returns `` Did you mean 'a' or 'b'?`` for the entries of ``known`` that resemble ``name``, else an empty text."""
    matches = difflib.get_close_matches(name, [str(item) for item in known], n=count, cutoff=0.6)
    return f' Did you mean {" or ".join(repr(match) for match in matches)}?' if matches else ''


def check_result(option: str, path: str | os.PathLike | None) -> None:
    """Says before a long run, and not after it, that :func:`write_result` will not be able to write.

    Raises:
        MoEConfigError: as there.
    """
    if path is None or (Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()):
        return  # a pipe waits for its reader
    is_new = not Path(path).exists()
    with _told_of(option, path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, 'a', encoding='utf-8'):
            pass
        if is_new:
            Path(path).unlink()


@contextmanager
def _told_of(option: str, path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MoEConfigError(f'{option} {path}: cannot be written: {error.strerror}') from error


def write_result(option: str, path: str | os.PathLike | None, content: dict | str) -> None:
    """Writes a result, a dict as JSON, where an option of a command says; nowhere without the option.

    Raises:
        MoEConfigError: the file cannot be written.
    """
    if path is None:
        return
    text = content if isinstance(content, str) else json.dumps(content, indent=2)
    with _told_of(option, path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text + '\n', encoding='utf-8')  # it may be a pipe: nothing to rename to
