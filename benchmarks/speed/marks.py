"""Texts between marks of a Markdown file, which benchmarks write from their records."""

from __future__ import annotations

import re


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
