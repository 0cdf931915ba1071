"""What all commands share: readable errors, exit statuses, the end of the process."""

from __future__ import annotations

import argparse
import atexit
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def run(work: str | Callable, unexpected: int | None = None, **arguments: Any) -> int:
    """Does the work of a command; errors that a user can fix end in one message.

    Args:
        work: a function, or ``'module:function'``, which is imported only now.
        unexpected: exit status after any other error, printed with its traceback, where 1 says something else.
        **arguments: given to the function.

    Returns:
        The exit status: the integer that the function returns, else 0; 2 after an error of the user's, 130 after
        Ctrl-C.

    Raises:
        Exception: any other error as it is, where ``unexpected`` is None; with ``MOE_DET_TRACEBACK=1`` in the
            environment, every error.
    """
    if unexpected is not None:
        try:
            return run(work, **arguments)
        except (Exception, SystemExit):
            traceback.print_exc()
            return unexpected
    try:
        from ..running.user_errors import run_main
    except ImportError as error:
        if type(error).__name__ != 'StackError' or os.environ.get('MOE_DET_TRACEBACK', '') not in ('', '0'):
            raise
        print(f'error: {error}', file=sys.stderr)
        return 2

    def call() -> int:
        result = _imported(work)(**arguments)
        return result if isinstance(result, int) else 0

    return run_main(call)


def _imported(work: str | Callable[..., object]) -> Callable[..., object]:
    if not isinstance(work, str):
        return work
    module, _, name = work.partition(':')
    return getattr(importlib.import_module(module), name)


def main_of(
    parse_args: Callable[..., argparse.Namespace], work: str, unexpected: int | None = None
) -> Callable[..., int]:
    """Returns the ``main`` of a command, which takes its arguments and what the user typed before them.

    Args:
        parse_args: of the command.
        work: ``'module:function'`` that takes what it parsed; see :func:`run`, as ``unexpected`` and exit status.
    """

    def main(argv: list[str] | None = None, prog: str | None = None) -> int:
        return run(work, unexpected, **vars(parse_args(argv, prog)))

    return main


def leave(status: int) -> NoReturn:
    """Ends the process with this status.

    One of several processes ends without the interpreter's finalisation, after all that was registered for the end:
    DistributedDataParallel keeps gloo's threads alive, and one that needs the interpreter then aborts the process,
    now and then, after everything is done (pytorch/pytorch#190489).
    """
    if 'LOCAL_RANK' not in os.environ:
        sys.exit(status)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
