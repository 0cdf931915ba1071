"""Arguments that commands share, and types of arguments whose errors say what was expected."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

CONFIG = "config file, a packaged config's name, or mmdet::... for one of mmdet's own"
EPILOG = 'Errors are one message; MOE_DET_TRACEBACK=1 in the environment shows where they come from.'


def command_parser(
    prog: str | None, description: str, epilog: str = EPILOG, config: str = CONFIG, checkpoint: str | None = None
) -> argparse.ArgumentParser:
    """Returns the parser of a command on a config.

    Args:
        prog: what the user typed.
        description: what the command does.
        epilog: the end of its help.
        config: what config it takes.
        checkpoint: what checkpoint it takes; None without one.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    parser.add_argument('config', help=config)
    if checkpoint is not None:
        parser.add_argument('checkpoint', help=checkpoint)
    return parser


def add_changes(parser: argparse.ArgumentParser, data: bool = True, device: bool = True) -> None:
    """Adds what changes a config and where it runs.

    Args:
        parser: of the command.
        data: whether the command reads data.
        device: whether it runs a model on a device that can be chosen.
    """
    if data:
        parser.add_argument('--data-root', metavar='DIR', help='folder that replaces the data folder of the config')
    if device:
        parser.add_argument('--device', help='cpu, cuda or cuda:N (default: cuda where there is one)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        metavar='KEY=VALUE',
        help='change config keys: model.backbone.depth=18 key="[a,b]" key="[(a,b),(c,d)]" (quotes, no spaces)',
    )


def whole_number(least: int) -> Callable[[str], int]:
    """Returns an argument type: an integer of at least ``least``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f'expected an integer >= {least}, got {text}')
        return value

    return parse


def number(least: float, below: float = float('inf')) -> Callable[[str], float]:
    """Returns an argument type: a number from ``least`` to below ``below``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float('nan')
        if not least <= value < below:
            limit = f' and < {below:g}' if below < float('inf') else ''
            raise argparse.ArgumentTypeError(f'expected a number >= {least:g}{limit}, got {text}')
        return value

    return parse


def file_name(*suffixes: str) -> Callable[[str], str]:
    """Returns an argument type: a file name with one of these suffixes."""

    def parse(text: str) -> str:
        if not text.lower().endswith(suffixes):
            *others, last = suffixes
            names = f'{", ".join(others)} or {last}' if others else last
            raise argparse.ArgumentTypeError(f'expected a name that ends in {names}, got {text}')
        return text

    return parse


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds what training and testing have in common."""
    parser.add_argument('--seed', type=int, help='seed of the run')
    parser.add_argument(
        '--no-data-check',
        dest='data_check',
        action='store_false',
        help='skip the check of annotations and images',
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
    add_changes(parser, device=False)


def with_local_rank(args: argparse.Namespace) -> argparse.Namespace:
    """Puts --local-rank, of torch.distributed.launch, which sets no environment, where torchrun puts it."""
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    del args.local_rank
    return args
