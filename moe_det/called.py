"""How the user called the package, for messages that name a command to run next."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Caller:
    program: str | None = None  # what stands before a command's name
    scripts: Mapping[str, str] | None = None  # command -> script, where scripts are called instead


_caller = _Caller()


@contextmanager
def called(program: str | None = None, scripts: Mapping[str, str] | None = None) -> Iterator[None]:
    """Says for a while how the user calls commands.

    Args:
        program: as which program, such as ``'python -m moe_det'``.
        scripts: as which scripts instead: command -> path.
    """
    global _caller
    before, _caller = _caller, _Caller(program, scripts)
    try:
        yield
    finally:
        _caller = before


def command(name: str, *arguments: str) -> str:
    """Returns the command line that runs a command of this package, called as the user called the present one."""
    if _caller.scripts is not None:
        words = ['python', short_path(_caller.scripts[name])]
    else:
        words = [*(_caller.program or 'moe-det').split(), name]
    return shlex.join([*words, *arguments])


def command_line() -> str:
    """Returns the command line of this process, as one would type it."""
    if _caller.program is not None:
        return shlex.join([*_caller.program.split(), *sys.argv[1:]])
    return shlex.join([Path(sys.executable).name, *sys.argv])


def short_path(path: str) -> str:
    """Returns ``path`` relative to the current folder if it lies in it."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative
