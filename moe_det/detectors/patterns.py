"""Patterns of module paths, such as ``decoder.layers.*.ffn``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

MOST_GROUPS_LISTED = 10


def path_matches(path: str, pattern: str) -> bool:
    """Whether a dotted path fits a pattern: ``*`` stands for (a part of) one name, ``**`` for any number of names."""
    return _fits(path.split('.'), pattern.split('.'))


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == '**':
        return any(_fits(names[i:], parts[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def grouped(paths: Iterable[str]) -> dict[str, int]:
    """Paths that differ in numbers alone as one pattern, and how many they are."""
    groups: dict[str, int] = {}
    for path in paths:
        pattern = re.sub(r'(?<![^.])\d+(?![^.])', '*', path)
        groups[pattern] = groups.get(pattern, 0) + 1
    return groups


def nearest(pattern: str, paths: Iterable[str]) -> str:
    """The groups of paths, those most like the pattern first, in words."""
    groups = grouped(paths)
    order = sorted(groups, key=lambda group: -difflib.SequenceMatcher(None, pattern, group).ratio())
    words = [f"'{group}' ({groups[group]})" for group in order[:MOST_GROUPS_LISTED]]
    more = len(order) - len(words)
    return ', '.join(words) + (f' and {more} more' if more else '')
