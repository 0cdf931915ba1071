"""Records of benchmarks: results as JSON, where they come from, and what of an older one still counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from . import README, RECORDS
from .page import fill

if TYPE_CHECKING:
    from argparse import Namespace

OTHER_CONFIG = 'recorded with another config'


def read(path: Path, empty: dict) -> dict:
    """A record, or ``empty`` without a file."""
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else empty


def write(path: Path, content: dict | str) -> None:
    """Writes a record, or the text of a page; nobody ever sees half of it."""
    from moe_det.common.atomic_file import write_atomically  # imports mmengine

    write_atomically(path, content if isinstance(content, str) else json.dumps(content, indent=1) + '\n')


def publish(args: Namespace, record: dict, page: str, name: str = '', shown: str = '') -> None:
    """Writes a record and its page.

    Args:
        args: with the files, ``record`` and ``page``.
        record: the whole one.
        page: its text.
        name: of the marks in README and of the repository's own record, which alone is shown there.
        shown: what stands between the marks; empty leaves README as it is.
    """
    write(args.record, record)
    write(args.page, page)
    if shown and args.record == RECORDS / f'{name}.json':
        write(README, fill(README.read_text(encoding='utf-8'), name, shown))


def today() -> str:
    """The date of a measurement."""
    return datetime.now(timezone.utc).strftime('%Y-%m-%d')


def origin(command: str) -> dict[str, object]:
    """``command``, ``machine``, ``versions`` and ``date`` of results that are measured here and now."""
    from moe_det.common.software import machine, versions  # imports torch

    return {'command': command, 'machine': machine(), 'versions': versions(), 'date': today()}


def up_to_date(
    found: Iterable[dict],
    name_of: Callable[[dict], str],
    is_so: Callable[[dict], bool],
    otherwise: str = OTHER_CONFIG,
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


def put_run(rows: list[dict], key: dict, run: dict, about: Callable[[], dict]) -> None:
    """Puts a run into its row, in place of one of the same seed, of which stays what the new one lacks.

    Args:
        rows: of the record, to which a new row is added.
        key: what tells the row from the others.
        run: with its ``seed``.
        about: what else a new row says.
    """
    row = next((row for row in rows if key.items() <= row.items()), None)
    if row is None:
        rows.append(row := {**key, **about(), 'seeds': []})
    runs = {other['seed']: other for other in row['seeds']}
    runs[run['seed']] = {**runs.get(run['seed'], {}), **run}
    row['seeds'] = [runs[seed] for seed in sorted(runs)]


class Runs:
    """Runs by what tells them apart, each put into record and page when it is done.

    Args:
        args: with the files, ``record`` and ``page``.
        identity: a run -> what tells it from the others, in the order of the record.
        name_of: a run -> its name, for the user.
        as_today: whether a run's config is still the same; others are not kept.
        page: runs in order -> the page.
    """

    def __init__(
        self,
        args: Namespace,
        identity: Callable[[dict], tuple],
        name_of: Callable[[dict], str],
        as_today: Callable[[dict], bool],
        page: Callable[[list[dict]], str],
    ) -> None:
        self.args, self.identity, self.page = args, identity, page
        recorded = read(args.record, {'runs': []})['runs']
        self.known = {identity(run): run for run in up_to_date(recorded, name_of, as_today)}

    def add(self, *runs: dict) -> None:
        """Adds runs, and writes record and page."""
        self.known |= {self.identity(run): run for run in runs}
        ordered = [self.known[key] for key in sorted(self.known)]
        publish(self.args, {'runs': ordered}, self.page(ordered))


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
