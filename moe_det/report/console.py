"""The results as a plain table for the console."""

from __future__ import annotations

import textwrap

from ..analysis.result import UNDETERMINED
from ..figures import values
from ..figures.tables import AP_COLUMNS
from ..figures.values import finite

WIDTH = 120
_LEAST_NAME = 12
_HEADS = ('E/k', 'I(E;rel|level)', 'p (Holm)', 'V', 'random gates', 'swap: AP', 'verdict')


def console_table(results: dict) -> str:
    """The key numbers of every layer in at most 120 columns, then what they mean in plain sentences.

    What the data cannot tell is a dash; the reason stands below the table.

    Raises:
        DataError: the results have another format.
    """
    results = values.readable(results)
    about = results.get('provenance') or {}
    head = [f'{results.get("title") or "Size specialisation"}']
    head.append(
        f'{values.count(about.get("images")).text} images, {values.count(about.get("objects")).text} objects, '
        f'{values.count(about.get("matched")).text} of them matched by a detection'
    )
    natural = (results.get('ap') or {}).get('natural') or {}
    head.append('  '.join(f'{name} {values.average_precision(natural.get(name)).text}' for name in AP_COLUMNS))
    rows = [_row(layer) for layer in results['layers']]
    lines = [line for text in head for line in textwrap.wrap(text, WIDTH)]
    lines += ['', *_aligned([str(layer['name']) for layer in results['layers']], rows), '']
    for layer in results['layers']:
        lines += _wrapped(f'{layer["name"]}: {layer.get("plain") or "No verdict."}')
    lines.append('')
    for layer in results['layers']:
        for words in _reasons(layer):
            lines += _wrapped(f'{layer["name"]}: {words}')
    for name, seeds in ((results.get('seeds') or {}).get('layers') or {}).items():
        lines += _wrapped(f'{name}, seeds: {seeds.get("sentence") or seeds.get("verdict") or "no verdict"}')
    for layer in results['layers']:
        for note in filter(None, layer.get('notes') or []):
            lines += _wrapped(f'{layer["name"]}: {note}')
    for note in filter(None, results.get('notes') or []):
        lines += _wrapped(f'note: {note}')
    return '\n'.join(lines).rstrip() + '\n'


def _row(layer: dict) -> list[str]:
    relative, gates, swap = (layer.get(key) or {} for key in ('relative_size', 'random_gates', 'swap'))
    loss = swap.get('AP') or {}
    above = values.share(gates.get('quantile'), digits=1)
    lost = f'{values.points(loss.get("difference")).text} {values.points_interval(loss.get("interval")).text}'
    return [
        f'{layer["num_experts"]}/{layer.get("top_k") or values.MISSING}',
        values.bits(relative.get('mi_bits')).text,
        values.p_value(relative.get('p_value_holm')).text,
        values.fixed(relative.get('cramers_v')).text,
        values.MISSING if above.value is None else f'above {above.text}',
        lost.strip(),
        str(layer.get('verdict') or UNDETERMINED),
    ]


def _reasons(layer: dict) -> list[str]:
    """Why numbers of the table are missing."""
    reasons = []
    relative = layer.get('relative_size') or {}
    if finite(relative.get('p_value_holm')) is None:
        why = relative.get('p_value_reason') or layer.get('p_value_reason') or 'no reason given'
        reasons.append(f'no p-value, {why}')
    if layer.get('random_gates') is None:
        reasons.append(f'no random gates, {layer.get("random_gates_reason") or "no reason given"}')
    if layer.get('swap') is None:
        reasons.append(f'no swap test, {layer.get("swap_reason") or "no reason given"}')
    return reasons


def _aligned(names: list[str], rows: list[list[str]]) -> list[str]:
    """Columns of equal width; names of layers get what the numbers leave, and keep both ends."""
    table = [list(_HEADS), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(_HEADS))]
    room = max(WIDTH - sum(widths) - 2 * len(widths), _LEAST_NAME)
    cut = [
        name if len(name) <= room else name[: room // 3] + '…' + name[len(name) + room // 3 + 1 - room :]
        for name in names
    ]
    widths = [max(map(len, ['layer', *cut])), *widths]
    table = [[name, *row] for name, row in zip(['layer', *cut], table, strict=True)]
    lines = ['  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=True)) for row in table]
    lines.insert(1, '  '.join('-' * width for width in widths))
    return [line.rstrip() for line in lines]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent='    ')
