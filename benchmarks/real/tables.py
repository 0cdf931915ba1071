"""Tables and numbers of the page that benchmarks/real_images.py writes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from .intervals import Interval

MISSING = '-'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [_line(heads), '|' + '---|' * len(heads), *(_line(row) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |'


def title(key: tuple[str, str]) -> str:
    """Heading of a folder and a backbone."""
    return f'### {key[0]}, {key[1]}'


def mean(values: Sequence[float | None]) -> str:
    """Mean over seeds, in points."""
    known = [100 * value for value in values if value is not None]
    return f'{fmean(known):.1f}' if known else MISSING


def points(values: Sequence[float | None]) -> str:
    """Mean and standard deviation over seeds, in points."""
    known = [100 * value for value in values if value is not None]
    return mean(values) + (f' ± {stdev(known):.1f}' if len(known) > 1 else '')


def difference(found: Interval | None) -> str:
    """Mean of the pairs and its interval."""
    if found is None:
        return MISSING
    if found.low is None:
        return f'{found.mean:+.1f}'
    return f'{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]'


def counted(words: Sequence[str]) -> str:
    """Each word once, with how often it comes."""
    return ', '.join(f'{word} ({words.count(word)})' for word in dict.fromkeys(words))
