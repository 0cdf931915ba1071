"""Records of benchmarks: results as JSON, where they come from, and what of an older one still counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path


def read(path: Path, empty: dict) -> dict:
    """A record, or ``empty`` without a file."""
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else empty


def write(path: Path, content: dict | str) -> None:
    """Writes a record, or the text of a page; nobody ever sees half of it."""
    from moe_det.common.atomic_file import write_atomically  # imports mmengine

    write_atomically(path, content if isinstance(content, str) else json.dumps(content, indent=1) + '\n')


def today() -> str:
    """The date of a measurement."""
    return datetime.now(timezone.utc).strftime('%Y-%m-%d')


def origin(command: str) -> dict[str, object]:
    """``command``, ``machine``, ``versions`` and ``date`` of results that are measured here and now."""
    from moe_det.common.software import machine, versions  # imports torch

    return {'command': command, 'machine': machine(), 'versions': versions(), 'date': today()}


def up_to_date(
    found: Iterable[dict], name_of: Callable[[dict], str], is_so: Callable[[dict], bool], otherwise: str
) -> list[dict]:
    """The results that still count; the others are printed, each name once.

    Args:
        found: results of a record.
        name_of: a result -> its name, for the user.
        is_so: whether a result would be measured in the same way today.
        otherwise: what is said of those that would not.
    """
    found = list(found)
    kept = [result for result in found if is_so(result)]
    for name in dict.fromkeys(name_of(result) for result in found if result not in kept):
        print(f'{name}: {otherwise}, not kept', flush=True)
    return kept


def put_run(rows: list[dict], row: dict, run: dict) -> None:
    """Puts a run into a row, in place of one of the same seed, of which stays what the new one lacks.

    Args:
        rows: of the record, to which a new row is added.
        row: with its runs under ``seeds``.
        run: with its ``seed``.
    """
    if not any(row is known for known in rows):
        rows.append(row)
    runs = {other['seed']: other for other in row['seeds']}
    runs[run['seed']] = {**runs.get(run['seed'], {}), **run}
    row['seeds'] = [runs[seed] for seed in sorted(runs)]


class Sections:
    """Results by section and name, written after each one, so that a stopped run loses nothing.

    Args:
        path: the file; None keeps everything in memory.
        script: that writes it, for the message.
        key: under which the file has them.

    Raises:
        DataError: the file is no such record.
    """

    def __init__(self, path: Path | None, script: str, key: str = 'sections') -> None:
        self.path, self.key = path, key
        self.about: dict[str, object] = {}  # what else is written
        self.sections: dict[str, dict[str, dict]] = {}
        if path is not None:
            try:
                self.sections = read(path, {key: {}})[key]
            except (ValueError, KeyError, TypeError) as error:
                from moe_det.errors import DataError

                raise DataError(f'{path}: no record of {script} ({error!r}); move it away') from error

    def get(self, section: str, name: str) -> dict:
        """A result; empty where there is none."""
        return self.sections.get(section, {}).get(name, {})

    def add(self, section: str, name: str, result: dict) -> None:
        """Adds or replaces a result and writes the file."""
        self.sections.setdefault(section, {})[name] = json.loads(json.dumps(result))
        self.write()

    def write(self) -> None:
        """Writes the file, where there is one."""
        if self.path is not None:
            write(self.path, self.content())

    def content(self) -> dict:
        """What is written."""
        return {**self.about, self.key: self.sections}
