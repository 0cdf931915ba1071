"""From the results of an analysis to tables of cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..analysis import slots
from . import palette, values
from .heat import Cell, Head, Heat
from .values import Number, finite

FEW_OBJECTS = 10  # a lift over fewer objects is printed faintly
AP_COLUMNS = ('AP', 'AP_S', 'AP_M', 'AP_L')
_SIZE_OF_AP = {'AP_S': 0, 'AP_M': 1, 'AP_L': 2}


def at(table: Any, *index: int) -> float | int | None:
    """The finite number at a place of nested lists, or None where any of it is missing."""
    for i in index:
        if table is None or i >= len(table):
            return None
        table = table[i]
    return finite(table)


def total(numbers: Sequence) -> float:
    """Sum of what is there."""
    return sum(number for number in numbers if finite(number) is not None)


def level_name(results: dict, index: int | None) -> str:
    """Name of a pyramid level; of no level: the whole image."""
    if index is None:
        return 'image'
    for level in results['levels']:
        if level['index'] == index:
            return str(level['name'])
    return f'level {index}'


def level_names(results: dict, layer: dict) -> str:
    """The levels of a layer in words: ``P3–P7``."""
    names = [level_name(results, index) for index in layer.get('levels') or []]
    words = names[0] if len(names) == 1 else f'{names[0]}–{names[-1]}' if names else 'no pyramid level'
    return f'{words}, one decision for all' if decides_once(layer) and len(names) > 1 else words


def decides_once(layer: dict) -> bool:
    """Whether one decision holds for all levels of an image."""
    return layer.get('unit') == 'image' or not layer.get('levels')


def num_slots(layer: dict) -> int:
    """Shards of a layer, of each of which every row runs one copy; 1 without shards."""
    return layer.get('slots') or 1


def expert_name(layer: dict, expert: int) -> str:
    """``expert 5``, or ``shard 1, copy 1``."""
    return slots.expert_name(expert, layer['num_experts'], num_slots(layer))


def lift_of(counts: Sequence[Sequence[float]] | None, expert: int, column: int) -> float | None:
    """Lift from counts: the expert's share of the column over its share of everything."""
    count = at(counts, expert, column)
    if counts is None or count is None:
        return None
    everything = sum(total(row) for row in counts)
    base = total(counts[expert])
    of_column = sum(at(row, column) or 0 for row in counts)
    if not (base and of_column and everything):
        return None
    return count * everything / (of_column * base)


def size_heads(results: dict, counts: Sequence[Sequence[float]] | None = None) -> list[Head]:
    """Heads of the size classes, with their range of areas and, if given, the number of objects."""
    heads = []
    for i, size in enumerate(results['sizes']):
        notes = [values.size_range(size)]
        if counts is not None:
            notes.append(f'n {values.count(sum(at(row, i) or 0 for row in counts), whole=_whole(counts)).text}')
        heads.append(Head(str(size['name']), tuple(notes), i))
    return heads


def expert_heads(layer: dict, counts: Sequence[Sequence[float]] | None) -> list[Head]:
    """Heads of the experts with their base rates: shares of all objects."""
    everything = sum(total(row) for row in counts or [])
    heads = []
    for expert in range(layer['num_experts']):
        rate = None
        if counts is not None and everything and expert < len(counts):
            rate = total(counts[expert]) / everything
        heads.append(Head(expert_name(layer, expert), (f'base {values.share(rate).text}',)))
    return heads


def size_heat(results: dict, layer: dict) -> Heat:
    """Expert x size: the lift over the expert's base rate, its interval and the count."""
    counts = layer.get('expert_by_size')
    rows = []
    for expert, head in enumerate(expert_heads(layer, counts)):
        cells = []
        for size in range(len(results['sizes'])):
            lift = at(layer.get('lift'), expert, size)
            bounds = (at(layer.get('lift_low'), expert, size), at(layer.get('lift_high'), expert, size))
            notes = (values.interval(bounds, 2), n_of(values.count(at(counts, expert, size), whole=_whole(counts))))
            cells.append(Cell(values.lift(lift), notes, *palette.shade_lift(lift), _few(counts, size)))
        rows.append((head, cells))
    return Heat('expert', size_heads(results, counts), rows)


def unit_heat(results: dict, layer: dict, unit: dict) -> Heat:
    """Expert x size of another unit; the lift is computed from its counts or masses."""
    counts = unit.get('expert_by_size')
    rows = []
    for expert, head in enumerate(expert_heads(layer, counts)):
        cells = [_lift_cell(counts, expert, size) for size in range(len(results['sizes']))]
        rows.append((head, cells))
    return Heat('expert', size_heads(results, counts), rows if counts else [])


def relative_heat(results: dict, layer: dict) -> Heat:
    """Expert x relative size: the lift over the expert's base rate, and the count."""
    counts: Any = (layer.get('relative_size') or {}).get('expert_by_size')
    names = (results.get('relative_sizes') or {}).get('names') or []
    columns = []
    for i in range(len((counts or [[]])[0])):
        n = values.count(sum(at(row, i) or 0 for row in counts), whole=_whole(counts))
        columns.append(Head(str((names[i] if i < len(names) else None) or f'bin {i}'), (f'n {n.text}',)))
    rows = []
    for expert, head in enumerate(expert_heads(layer, counts)):
        rows.append((head, [_lift_cell(counts, expert, i) for i in range(len(columns))]))
    return Heat('expert', columns, rows)


def limits_rows(results: dict) -> list[tuple[str, list[str]]]:
    """The name of each level and the areas of its thirds in words."""
    rows = []
    for entry in (results.get('relative_sizes') or {}).get('limits') or []:
        areas = [values.area(area).text for area in entry.get('areas') or [] if finite(area) is not None]
        if areas:
            between = [f'{low}–{high}' for low, high in itertools.pairwise(areas)]
            texts = [f'≤ {areas[0]}', *between, f'> {areas[-1]}']
            rows.append((level_name(results, entry.get('level')), texts))
    return rows


def level_heat(results: dict, layer: dict) -> Heat:
    """Expert x level: the share of a level's objects that the expert has."""
    counts = layer.get('expert_by_level')
    levels = (layer.get('levels') or []) if counts else []
    sums = [sum(at(row, i) or 0 for row in counts or []) for i in range(len(levels))]
    columns = [
        Head(level_name(results, index), (f'n {values.count(n).text}',)) for index, n in zip(levels, sums, strict=True)
    ]
    rows = []
    for expert, head in enumerate(expert_heads(layer, counts)):
        cells = []
        for i, level_sum in enumerate(sums):
            count = at(counts, expert, i)
            share = count / level_sum if count is not None and level_sum else None
            few = 0 < level_sum < FEW_OBJECTS
            cells.append(Cell(values.share(share), (n_of(values.count(count)),), *palette.shade_share(share), few))
        rows.append((head, cells))
    return Heat('expert', columns, rows)


def within_heats(results: dict, layer: dict) -> list[tuple[str, Heat]]:
    """Per level, expert x size: the lift over the expert's share of that level."""
    tables = layer.get('expert_by_size_by_level') or []
    heats = []
    for index, counts in zip(layer.get('levels') or [], tables, strict=False):
        columns = []
        for i, size in enumerate(results['sizes']):
            n = values.count(sum(at(row, i) or 0 for row in counts or []))
            columns.append(Head(str(size['name']), (f'n {n.text}',), i))
        rows = [
            (Head(expert_name(layer, expert)), [_lift_cell(counts, expert, size) for size in range(len(columns))])
            for expert in range(layer['num_experts'])
        ]
        heats.append((level_name(results, index), Heat('expert', columns, rows)))
    return heats


def within_heat(results: dict, layer: dict) -> Heat:
    """All of :func:`within_heats` side by side."""
    heats = [(name, heat) for name, heat in within_heats(results, layer) if heat]
    if not heats:
        return Heat('expert', [], [])
    columns = [head for _, heat in heats for head in heat.columns]
    rows = []
    for lines in zip(*(heat.rows for _, heat in heats), strict=True):
        rows.append((lines[0][0], [cell for _, cells in lines for cell in cells]))
    return Heat('expert', columns, rows, [(name, len(heat.columns)) for name, heat in heats])


def ap_heat(results: dict, layer: dict, interventions: list[dict]) -> Heat:
    """AP under interventions on experts, with the difference from the natural routing."""
    natural = (results.get('ap') or {}).get('natural') or {}
    columns = [Head(name, size=_SIZE_OF_AP.get(name)) for name in AP_COLUMNS]
    if not interventions:
        return Heat('routing', columns, [])
    scale = ap_scale(natural, interventions)
    rows = [(Head('natural'), [Cell(values.average_precision(natural.get(name))) for name in AP_COLUMNS])]
    for row in interventions:
        cells = []
        for name in AP_COLUMNS:
            difference = values.ap_difference(row.get(name), natural.get(name))
            shade = palette.shade_signed(None if difference.value is None else difference.value / scale)
            notes = (difference,) if difference.value is not None else ()
            cells.append(Cell(values.average_precision(row.get(name)), notes, *shade))
        rows.append((Head(expert_name(layer, row['expert'])), cells))
    return Heat('routing', columns, rows)


def ap_scale(natural: dict, interventions: list[dict]) -> float:
    """The difference of AP that has the strongest shade: the largest of the table, at least one point."""
    pairs = ((row.get(name), natural.get(name)) for row in interventions for name in AP_COLUMNS)
    differences = [values.ap_difference(value, reference).value for value, reference in pairs]
    return max([0.01, *(abs(d) for d in differences if d is not None)])


def _lift_cell(counts: Sequence[Sequence[float]] | None, expert: int, size: int) -> Cell:
    lift = lift_of(counts, expert, size)
    count = values.count(at(counts, expert, size), whole=_whole(counts))
    return Cell(values.lift(lift), (n_of(count),), *palette.shade_lift(lift), _few(counts, size))


def _few(counts: Sequence[Sequence[float]] | None, column: int) -> bool:
    return sum(at(row, column) or 0 for row in counts or []) < FEW_OBJECTS


def _whole(counts: Sequence[Sequence[float]] | None) -> bool:
    """Whether the table holds counts; else it holds sums of weights."""
    return all(float(n).is_integer() for row in counts or [] for n in row if finite(n) is not None)


def n_of(number: Number) -> Number:
    """The number after an ``n``."""
    return prefixed('n ', number)


def prefixed(prefix: str, number: Number) -> Number:
    """The number after a prefix, unless there is none."""
    return number if number.value is None else Number(number.value, prefix + number.text)
