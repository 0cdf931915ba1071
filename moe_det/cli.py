"""``moe-det``, and ``python -m moe_det``: one program for all commands."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

from .called import called
from .commands import COMMANDS
from .commands.start import leave
from .errors import unknown_name
from .version import __version__


def overview(program: str) -> str:
    """Returns the help text: every command with one line."""
    lines = [f'  {name:13} {what}' for name, (_, what) in COMMANDS.items()]
    return '\n'.join(
        [
            f'usage: {program} COMMAND ...',
            '',
            'Mixtures of experts for MMDetection. Commands:',
            *lines,
            '',
            f"'{program} COMMAND --help' lists a command's arguments; '{program} --version' prints the version.",
        ]
    )


def main(argv: list[str] | None = None, program: str = 'moe-det') -> int:
    """Runs a command.

    Args:
        argv: the command's name and its arguments (default: those of the process).
        program: what the user typed before them.

    Returns:
        The exit status of the command; 2 without a command or with an unknown one, 1 where nobody reads its output.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ['']
    if name in ('-h', '--help', 'help'):
        print(overview(program))
        return 0
    if name == '--version':
        print(f'moe_det {__version__}')
        return 0
    if name not in COMMANDS:
        message = f'error: {unknown_name("command", name, COMMANDS)}' if name else overview(program)
        print(message, file=sys.stderr)
        return 2
    module = importlib.import_module(f'.commands.{COMMANDS[name][0]}', __package__)
    with called(program):
        try:
            status = module.main(arguments, f'{program} {name}')
            sys.stdout.flush()
        except BrokenPipeError:  # who reads, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
    return status


def start() -> NoReturn:
    """The console script ``moe-det``."""
    leave(main())
