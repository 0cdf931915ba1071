"""Pages of benchmarks: tables, numbers as they stand in them, and texts between marks of a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from tabulate import DataRow, TableFormat, tabulate

if TYPE_CHECKING:
    from .intervals import Difference

MEASURES = ('AP', 'AP_S', 'AP_M', 'AP_L')
MISSING = '-'
_BARS = DataRow('|', '|', '|')
# without tabulate's padding: one long cell would rewrite every line of its table
_MARKDOWN = TableFormat(None, lambda widths, _: '|' + '---|' * len(widths), None, None, _BARS, _BARS, 1, None)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table; cells stand as they are."""
    text = tabulate([list(map(str, row)) for row in rows], heads, _MARKDOWN, disable_numparse=True, stralign=None)
    return text.splitlines()


def bullets(sentences: Iterable[str]) -> list[str]:
    """Lines of a list."""
    return [f'- {sentence}' for sentence in sentences]


def section(title: str, *blocks: Iterable[str], level: int = 2) -> list[str]:
    """Lines of a heading and of what stands below it, with an empty line before each block."""
    return [line for block in ([f'{"#" * level} {title}'], *blocks) for line in ('', *block)]


def titled(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table below its title; empty without rows."""
    return '\n'.join([title, '', *table(heads, rows)]) if rows else ''


# -- numbers ----------------------------------------------------------------------------------------------------------


def defined(value: float | None) -> bool:
    """Whether an average precision is one: -1 stands for no object of the size."""
    return value is not None and value >= 0


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and, from two values on, standard deviation (n - 1)."""
    if not values:
        return MISSING
    return f'{fmean(values):.{digits}f}' + (f' ± {stdev(values):.{digits}f}' if len(values) > 1 else '')


def points(values: Iterable[float | None]) -> str:
    """Mean and standard deviation of average precisions over seeds, in points."""
    return spread([100 * value for value in values if defined(value)], 1)


def mean(values: Iterable[float | None]) -> str:
    """The mean alone."""
    return points(values).partition(' ')[0]


def difference(found: Difference | None) -> str:
    """A mean difference and its interval."""
    if found is None:
        return MISSING
    interval = '' if found.low is None else f' [{found.low:+.1f}, {found.high:+.1f}]'
    return f'{found.mean:+.1f}{interval}'


def seeds_in_words(count: int) -> str:
    """A number of seeds."""
    return 'one seed' if count == 1 else f'{count} seeds'


def sure(found: Difference) -> str:
    """How sure a mean of pairs is."""
    error = '' if found.error is None else f'standard error {found.error:.2f}, '
    return error + seeds_in_words(found.seeds)


def in_words(text: str, shown: Mapping[str, str]) -> str:
    """Sentences with README's words, without what stands in brackets, for the names of rows in quotes."""
    for name, words in shown.items():
        text = text.replace(f'"{name}"', f'"{words.partition(" (")[0]}"')
    return text


def swap_cell(swaps: Iterable[dict | None], measure: str) -> str:
    """Mean change under the swap test in points, and in how many of the seeds the interval lies below zero.

    Args:
        swaps: of each seed measure -> ``difference`` and ``interval``; None where it was not tested.
        measure: of ``MEASURES``.
    """
    found = [(swap or {}).get(measure) or {} for swap in swaps]
    found = [one for one in found if one.get('difference') is not None]
    if not found:
        return MISSING
    losses = sum(one.get('interval') is not None and one['interval'][1] < 0 for one in found)
    return f'{100 * fmean(one["difference"] for one in found):+.1f} ({losses} of {len(found)})'


def counted(words: Sequence[str]) -> str:
    """Each word once, with how often it comes."""
    return ', '.join(f'{word} ({words.count(word)})' for word in dict.fromkeys(words))


def curve(runs: Sequence[dict]) -> str:
    """AP in points by epoch, mean over runs."""
    by_epoch: dict[int, list[float]] = {}
    for run in runs:
        for epoch, values in run['curve'].items():
            by_epoch.setdefault(int(epoch), []).append(values['AP'])
    return ', '.join(f'{epoch}: {mean(values)}' for epoch, values in sorted(by_epoch.items()))


# -- texts ------------------------------------------------------------------------------------------------------------


def listed(versions: dict[str, str | None]) -> str:
    """Packages and their versions."""
    return ', '.join(f'{name} {version}' for name, version in versions.items() if version)


def made(record: dict) -> str:
    """Where a whole record comes from."""
    return f'`{record["command"]}`, {record["machine"]}, {record["date"]}; {listed(record["versions"])}.'


def origins(runs: Iterable[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """Machine, versions and command -> the runs that come from there."""
    found: dict[tuple[str, str, str], list[dict]] = {}
    for run in runs:
        found.setdefault((run['machine'], listed(run['versions']), run['command']), []).append(run)
    return found


def dates(runs: Iterable[dict]) -> str:
    """The days of some runs."""
    return ', '.join(sorted({run['date'] for run in runs}))


def fill(text: str, name: str, content: str) -> str:
    """Puts content between a text's two marks of a name.

    Raises:
        ValueError: the text does not have both marks, once each.
    """
    begin, end = (f'<!-- {name}: {word} -->' for word in ('begin', 'end'))
    pattern = re.compile(f'{re.escape(begin)}.*?{re.escape(end)}', flags=re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f'expected once {begin} ... {end}')
    return pattern.sub(lambda _: f'{begin}\n{content}\n{end}', text)
