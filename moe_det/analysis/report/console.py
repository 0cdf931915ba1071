"""The results as a plain table for the console."""

from __future__ import annotations

import textwrap

from ..figures import values
from ..figures.captions import unit_words
from ..figures.tables import AP_COLUMNS
from ..figures.values import finite

WIDTH = 120
_NAME = 22


def console_table(results: dict) -> str:
    """The key numbers of every layer in at most 120 columns.

    A p-value that the data cannot carry is a dash; the reason stands below the table.
    """
    results = values.cleaned(results)
    about = results.get('provenance') or {}
    head = [f'{results.get("title") or "Size specialisation"}']
    head.append(
        f'{values.count(about.get("images")).text} images, {values.count(about.get("objects")).text} objects, '
        f'{values.count(about.get("matched")).text} of them matched by a detection'
    )
    natural = (results.get('ap') or {}).get('natural') or {}
    head.append('  '.join(f'{name} {values.average_precision(natural.get(name)).text}' for name in AP_COLUMNS))
    names = ['layer', 'unit', 'E', 'k', 'I(E;S)', 'I(E;S|level) [interval]', 'p (Holm)', 'V|level', 'verdict']
    rows = [_row(layer) for layer in results['layers']]
    lines = [line for text in head for line in textwrap.wrap(text, WIDTH)]
    lines += ['', *_aligned(names, rows), '']
    for layer in results['layers']:
        lines += _wrapped(f'{layer["name"]}: {layer.get("sentence") or "no verdict"}')
        if finite(layer.get('p_value_holm')) is None:
            lines += _wrapped(f'{layer["name"]}: no p-value, {layer.get("p_value_reason") or "no reason given"}')
    for name, seeds in ((results.get('seeds') or {}).get('layers') or {}).items():
        lines += _wrapped(f'{name}, seeds: {seeds.get("sentence") or seeds.get("verdict") or "no verdict"}')
    for layer in results['layers']:
        for note in filter(None, layer.get('notes') or []):
            lines += _wrapped(f'{layer["name"]}: {note}')
    for note in filter(None, results.get('notes') or []):
        lines += _wrapped(f'note: {note}')
    return '\n'.join(lines).rstrip() + '\n'


def _row(layer: dict) -> list[str]:
    name = str(layer['name'])
    if len(name) > _NAME:  # both ends tell layers apart
        name = name[:8] + '…' + name[-(_NAME - 9) :]
    given = values.bits(layer.get('mi_given_level_bits')).text
    bounds = values.interval(layer.get('mi_given_level_ci')).text
    return [
        name,
        unit_words(layer).replace(' × ', 'x'),
        str(layer['num_experts']),
        str(layer.get('top_k') or values.MISSING),
        values.bits(layer.get('mi_bits')).text,
        f'{given} {bounds}'.strip(),
        values.p_value(layer.get('p_value_holm')).text,
        values.fixed(layer.get('cramers_v_given_level')).text,
        str(layer.get('verdict') or 'undetermined'),
    ]


def _aligned(names: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [names, *rows]) for i in range(len(names))]
    table = ['  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=True)) for row in [names, *rows]]
    table.insert(1, '  '.join('-' * width for width in widths))
    return [line.rstrip() for line in table]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent='    ')
