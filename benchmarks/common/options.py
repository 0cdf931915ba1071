"""Options of the command line that benchmarks share, and the command as a record has it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from . import RECORDS, RESULTS


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it is."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from ``least`` on."""

    def number(text: str) -> int:
        if not text.lstrip('-').isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text}: expected at least {least}')
        return int(text)

    return number


def json_file(text: str) -> Path:
    """The type of an option that names a record."""
    if not text.endswith('.json'):
        raise argparse.ArgumentTypeError(f'{text}: expected a name that ends in .json')
    return Path(text)


def folder(text: str) -> Path:
    """The type of an option that names a folder: absolute, as commands run elsewhere."""
    return Path(text).expanduser().resolve()


def add_runs(parser: argparse.ArgumentParser, name: str, seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Options of all benchmarks that train: seeds, runs at the same time, and the folder of the runs."""
    parser.add_argument('--seeds', nargs='+', type=int, default=list(seeds))
    parser.add_argument('--jobs', type=at_least(1), default=1, metavar='N', help='runs at once, which share the cores')
    parser.add_argument('--work-dir', type=folder, default=f'work_dirs/{name}')


def add_data_sets(parser: argparse.ArgumentParser) -> None:
    """The option of benchmarks that train classifiers."""
    help_ = "folder of the data sets (default: the configs' own)"
    parser.add_argument('--data-root', type=folder, metavar='DIR', help=help_)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """The option of benchmarks whose runs are commands; :func:`common.runs.threads_of` has its default."""
    parser.add_argument('--threads', type=int, help='threads of each run (default: the cores, shared by the jobs)')


def add_files(parser: argparse.ArgumentParser, name: str) -> None:
    """Options for other places of record and page."""
    parser.add_argument('--record', type=json_file, default=RECORDS / f'{name}.json', help='(%(default)s)')
    parser.add_argument('--page', type=Path, default=RESULTS / f'{name}.md', help='(%(default)s)')


def command_of(script: str, args: argparse.Namespace, parser: argparse.ArgumentParser, keys: Iterable[str]) -> str:
    """The command for the record: those of ``keys`` that differ from the defaults, without folders of this machine."""
    words = ['python', f'benchmarks/{script}', '--data-root', 'DIR']
    for key in keys:
        value = getattr(args, key)
        if value != parser.get_default(key):
            words.append(f'--{key.replace("_", "-")}')
            words += [] if value is True else map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)
