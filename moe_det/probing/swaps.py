"""The routings of the swap test, made from the decisions that a first pass over the images has recorded.

Every row takes the decision of another image's row at the same level, or of its own image at another level; or all
rows take the same experts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from ..analysis.donors import donors_of, level_shifted_rows, swapped_regions, swapped_rows
from ..routing.intervention import Intervention
from ..routing.regions import ROI
from ..routing.route_table import RouteTable
from ..routing.tokens import TOKEN
from .conditions import Condition, all_swapped, levels_shifted, routed, swapped
from .findings import Findings, LayerFindings

MOST_ROUTES = 16
LEVEL_DRAWS = 2  # an image has few other levels


def swap_donors(
    findings: Findings,
    infos: Sequence,
    object_counts: np.ndarray,
    draws: int,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """Draws the donors of every image, the same for all layers.

    Args:
        findings: of all images under the detector's own routing.
        infos: of the layers to change: :class:`~moe_det.analysis.inputs.LayerInfo`.
        object_counts: (N,) objects of each image.
        draws: D.
        seed: of the draws.
        groups: (N,) what each image belongs to; None: every image is its own group.

    Returns:
        (D, N) position of each image's donor, -1 where it keeps its own decisions.
    """
    shapes = _shapes(
        [findings.layers[info.name] for info in infos if info.unit not in (ROI, TOKEN)], len(object_counts)
    )
    generators = [np.random.default_rng((seed, draw)) for draw in range(draws)]
    donors = [donors_of(object_counts, rng, shapes, groups) for rng in generators]
    return np.array(donors, dtype=np.int64).reshape(draws, len(object_counts))


def _shapes(layers: Sequence[LayerFindings], images: int) -> np.ndarray:
    """(N,) a number that images have in common if all their layers have the same rows."""
    columns = [np.zeros((images, 1), dtype=np.int64)]
    for layer in layers:
        rows = np.zeros((images, int(layer.levels.max()) + 1), dtype=np.int64)
        np.add.at(rows, (layer.image_ids, layer.levels), 1)
        columns.append(rows)
    return np.unique(np.concatenate(columns, axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def swap_conditions(
    findings: Findings, infos: Sequence, donors: np.ndarray, seed: int, fixed: bool = True
) -> list[Condition]:
    """Lists the conditions of the second pass.

    For each layer: ``<layer>/swap/<d>``, the decisions of the image's donor; ``<layer>/levels/<d>``, each level that of
    another level of the image, where the layer decides about several, in two draws; ``<layer>/route/<a>+<b>``, every
    row to the same set of as many experts as the layer chooses, with each image's loss. With several layers
    ``all/swap/<d>`` as well.

    Regions of interest are no rows that images share, and other decisions of layers before the box heads make other
    regions: ``all/swap/<d>`` leaves layers of regions as they are where there are others, and none of them takes the
    decisions of other levels. Of tokens too few are kept to exchange them.

    Args:
        findings: of all images under the detector's own routing.
        infos: of the layers to change.
        donors: (D, N) from :func:`swap_donors`.
        seed: of the other draws.
        fixed: with the routes that are the same for all images.
    """
    draws = len(donors)
    swaps: list[dict[str, Intervention]] = [{} for _ in range(draws)]
    found = []
    for number, info in enumerate(infos):
        layer = findings.layers[info.name]
        if info.unit != TOKEN:
            regions = info.unit == ROI
            levels = np.zeros_like(layer.levels) if regions else layer.levels  # regions come image by image
            own = RouteTable(layer.weights, layer.image_ids, levels, layer.patches, slots=info.slots)
            places = layer.image_ids, layer.levels, layer.patches
            swap = swapped_regions if regions else swapped_rows
            for draw in range(draws):
                swaps[draw][info.name] = Intervention(routes=own.taking(swap(*places, donors[draw])))
            found += [Condition(swapped(info.name, d), {info.name: swaps[d][info.name]}) for d in range(draws)]
            if layer.levels.max() > 0 and not regions:
                for draw in range(min(draws, LEVEL_DRAWS)):
                    rows = level_shifted_rows(*places, np.random.default_rng((seed, draw, 1 + number)))
                    routes = {info.name: Intervention(routes=own.taking(rows))}
                    found.append(Condition(levels_shifted(info.name, draw), routes))
        for experts in expert_sets(info.num_experts, info.top_k, seed, info.slots) if fixed else ():
            route = {info.name: Intervention(forced=experts)}
            found.append(Condition(routed(info.name, experts), route, losses=True))
    together = [info.name for info in infos if info.unit not in (ROI, TOKEN)]
    together = together or [info.name for info in infos if info.unit == ROI]
    if len(together) > 1:
        for draw in range(draws):
            found.append(Condition(all_swapped(draw), {name: swaps[draw][name] for name in together}))
    return found


def expert_sets(num_experts: int, top_k: int, seed: int, slots: int = 1) -> list[tuple[int, ...]]:
    """Sets of ``top_k`` of the experts in order, or one of every slot: all, or 16 drawn where there are more."""
    rng = np.random.default_rng(seed)
    every: Iterable[tuple[int, ...]]
    if slots == 1:
        count, every = math.comb(num_experts, top_k), itertools.combinations(range(num_experts), top_k)
    else:
        copies = num_experts // slots
        firsts = range(0, num_experts, copies)
        count, every = copies**slots, itertools.product(*(range(first, first + copies) for first in firsts))
    if count <= MOST_ROUTES:
        return list(every)
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < MOST_ROUTES:
        if slots == 1:
            drawn.add(tuple(sorted(rng.choice(num_experts, top_k, replace=False).tolist())))
        else:
            drawn.add(tuple(first + int(rng.integers(copies)) for first in firsts))
    return sorted(drawn)
