"""The routing of single images, level by level, as the page shows it."""

from __future__ import annotations

import math

import numpy as np

from ..analysis.slots import top_experts
from ..figures import palette, routing_tables, tables, values
from ..figures.heat import Cell
from .embedding import Embedder


def example_views(results: dict, embedder: Embedder) -> list[dict]:
    """Images with, per layer, a table of weights (one row per level) or a grid of patches per level."""
    known = {layer['name']: layer for layer in results['layers']}
    views = []
    for example in results.get('examples') or []:
        layers = []
        for layer in example.get('layers') or []:
            if layer['name'] not in known:
                continue
            of_layer, levels = known[layer['name']], layer.get('levels') or []
            in_patches = any(len(level.get('weights') or []) > 1 for level in levels)
            layers.append(
                {
                    'name': layer['name'],
                    'heat': None if in_patches else routing_tables.routing_heat(results, of_layer, levels),
                    'grids': [_grid(results, level, tables.num_slots(of_layer)) for level in levels]
                    if in_patches
                    else [],
                    'grid_words': 'the expert with the largest weight, and that weight'
                    if tables.num_slots(of_layer) == 1
                    else 'the copy of each shard',
                }
            )
        views.append({**example, 'source': embedder.source(example.get('picture')), 'layers': layers})
    return views


def _grid(results: dict, level: dict, slots: int) -> dict:
    """A level's patches in reading order: each its heaviest expert, shaded by that weight, or the copy of each shard.

    Args:
        results: of the analysis.
        level: of an example: ``level`` and ``weights``.
        slots: shards; 1 without.
    """
    patches = level.get('weights') or []
    side = math.isqrt(len(patches))
    cells = []
    for i, patch in enumerate(patches):
        weights = [tables.at(patches, i, expert) or 0.0 for expert in range(len(patch))]
        best = max(range(len(weights)), key=weights.__getitem__, default=None)
        if best is None:
            cells.append(Cell(values.count(None)))
            continue
        if slots > 1:
            of_each = len(weights) // slots
            copies = top_experts(np.array([weights]), slots)[0] % of_each
            route = int(np.ravel_multi_index(copies, [of_each] * slots))
            cells.append(Cell(values.Number(route, ' '.join(map(str, copies)))))
            continue
        weight = values.fixed(weights[best])
        cells.append(Cell(values.count(best), (weight,), *palette.shade_share(weight.value)))
    columns = side if side * side == len(patches) else max(len(patches), 1)
    return {'name': tables.level_name(results, level.get('level')), 'columns': columns, 'cells': cells}
