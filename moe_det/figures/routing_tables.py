"""From the results of an analysis to tables of how experts are used, whatever the objects."""

from __future__ import annotations

from . import palette, values
from .heat import Cell, Head, Heat
from .tables import at, decides_once, expert_name, level_name, n_of, prefixed


def usage_heat(results: dict, layer: dict) -> Heat:
    """Importance and load of the experts, over all rows and per level."""
    overall = layer.get('utilisation') or {}
    by_level = layer.get('utilisation_by_level') or []
    experts = layer['num_experts']
    columns = [Head('importance', ('of weights',)), Head('load', ('1 is fair',))]
    columns += [
        Head(level_name(results, entry.get('level')), (f'{values.count(entry.get("rows")).text} rows',))
        for entry in by_level
    ]
    groups = [('all rows', 2), ('importance per level', len(by_level))] if by_level else []
    rows = []
    for expert in range(experts):
        share = at(overall.get('importance_share'), expert)
        load = at(overall.get('load_ratio'), expert)
        cells = [
            Cell(values.share(share), (), *palette.shade_share(share)),
            Cell(values.fixed(load), (), *palette.shade_lift(load)),
        ]
        for entry in by_level:
            share = at(entry.get('importance_share'), expert)
            cells.append(Cell(values.share(share), (), *palette.shade_share(share)))
        rows.append((Head(expert_name(layer, expert)), cells))
    return Heat('expert', columns, rows if overall or by_level else [], groups)


def usage_summary(results: dict, layer: dict) -> Heat:
    """Living experts and entropies, over all rows and per level."""
    entries = [('all rows', layer.get('utilisation'))]
    entries += [(level_name(results, e.get('level')), e) for e in layer.get('utilisation_by_level') or []]
    columns = [
        Head('living', (f'of {layer["num_experts"]}',)),
        Head('H_s', ('bits',)),
        Head('H_u', ('bits',)),
        Head('rows'),
    ]
    rows = [
        (
            Head(name),
            [
                Cell(values.count(entry.get('living'))),
                Cell(values.fixed(entry.get('row_entropy'), 3)),
                Cell(values.fixed(entry.get('batch_entropy'), 3)),
                Cell(values.count(entry.get('rows'))),
            ],
        )
        for name, entry in entries
        if entry
    ]
    return Heat('rows of', columns, rows)


def spearman_heat(results: dict, layer: dict, unit: dict) -> Heat:
    """Expert x level: rank correlation between the gate's weight and the image's sizes."""
    entries = unit.get('spearman') or []
    levels = sorted({e.get('level') for e in entries}, key=lambda level: (level is not None, level or 0))
    found = {(e['expert'], e.get('level')): e for e in entries}
    rows = []
    for expert in range(layer['num_experts']):
        cells = []
        for level in levels:
            entry = found.get((expert, level), {})
            rho, p = values.fixed(entry.get('rho')), values.p_value(entry.get('p_value'))
            notes = (prefixed('p ', p), n_of(values.count(entry.get('n'))))
            cells.append(Cell(rho, notes, *palette.shade_signed(rho.value)))
        rows.append((Head(expert_name(layer, expert)), cells))
    names = [level_name(results, None if decides_once(layer) else level) for level in levels]
    return Heat('expert', [Head(name) for name in names], rows if levels else [])


def routing_heat(results: dict, layer: dict, levels: list[dict]) -> Heat:
    """One image: the weight of every expert at every level; of patches their mean."""
    # one decision for all levels has no level
    columns = [Head(level_name(results, None if decides_once(layer) else e.get('level'))) for e in levels]
    rows = []
    for expert in range(layer['num_experts']):
        cells = []
        for entry in levels:
            patches = entry.get('weights') or []
            found = [weight for weight in (at(patches, i, expert) for i in range(len(patches))) if weight is not None]
            mean = sum(found) / len(found) if found else None
            cells.append(Cell(values.fixed(mean), (), *palette.shade_share(mean)))
        rows.append((Head(expert_name(layer, expert)), cells))
    return Heat('expert', columns, rows)
