"""The three units of analysis: which expert served an object or an image, as arrays for the statistics.

Functions here read findings (:class:`moe_det.probing.findings.Findings`), arrays only. Letters: g ground truths, n
entries, E experts, R routing rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr

from .slots import top_experts

if TYPE_CHECKING:
    from ..probing.findings import LayerFindings

NO_ROW = -1
FEWEST_IMAGES_CORRELATED = 10


@dataclass(frozen=True)
class Unit:
    """One entry per object, or per object and level.

    Attributes:
        objects: (n,) position of the object in the ground truth.
        rows: (n,) its routing row in the layer's table.
        image_ids: (n,) image of the row.
        levels: (n,) pyramid level of the object: of the detection that found it, or of the anchors that it is assigned.
        patches: (n,) patch of the row.
        experts: (n, E) how much each expert had to do with the entry; rows sum to 1.
        sizes: (n,) size bin.
        shares: (n,) part of the object that the entry stands for; an object's entries sum to 1.
    """

    objects: np.ndarray
    rows: np.ndarray
    image_ids: np.ndarray
    levels: np.ndarray
    patches: np.ndarray
    experts: np.ndarray
    sizes: np.ndarray
    shares: np.ndarray


def _unit(
    layer: LayerFindings,
    objects: np.ndarray,
    rows: np.ndarray,
    levels: np.ndarray,
    sizes: np.ndarray,
    shares: np.ndarray | None = None,
) -> Unit:
    shares = np.ones(len(objects)) if shares is None else shares
    seen = layer.weights[rows].sum(axis=1) > 0  # where experts choose rows, none may have chosen an object's
    objects, rows, levels, shares = (values[seen] for values in (objects, rows, levels, shares))
    return Unit(
        objects=objects,
        rows=rows,
        image_ids=layer.image_ids[rows],
        levels=levels,
        patches=layer.patches[rows],
        experts=_normalised(layer.weights[rows]),
        sizes=sizes[objects],
        shares=shares,
    )


def _normalised(weights: np.ndarray) -> np.ndarray:
    """Weights that sum to 1 in each row: they may be the gate's probability of its one choice, or 1 in every slot."""
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)


def decides_per_image(layer: LayerFindings) -> bool:
    """Whether the layer decides once per image (or patch of it), so that an object's centre tells its row."""
    return bool((layer.truth_rows != NO_ROW).any())


def detection_unit(layer: LayerFindings, matches: np.ndarray, levels: np.ndarray, sizes: np.ndarray) -> Unit:
    """Objects that were found, each with the routing row of the detection that COCO's rules match to it.

    Args:
        layer: findings on one layer.
        matches: (g,) position of the matched detection, -1 where none.
        levels: (n,) pyramid level of each detection, -1 where it cannot be followed.
        sizes: (g,) size bin of each object.

    Returns:
        An entry per matched object whose row and level are known.
    """
    objects = np.flatnonzero(matches >= 0)
    level = levels[matches[objects]]
    rows = layer.truth_rows[objects] if decides_per_image(layer) else layer.detection_rows[matches[objects]]
    known = (rows != NO_ROW) & (level >= 0)
    return _unit(layer, objects[known], rows[known], level[known], sizes)


def training_unit(layer: LayerFindings, positives: np.ndarray, sizes: np.ndarray) -> Unit:
    """Every object with the expert weights over the anchors that the head's own assigner gives it.

    An object whose positives lie on several levels has an entry for each, with the level's part of its positives.

    Args:
        layer: findings on one layer.
        positives: (p, 2) object number and level of each positive anchor.
        sizes: (g,) size bin of each object.
    """
    rows = layer.truth_rows[positives[:, 0]] if decides_per_image(layer) else layer.positive_rows
    known = rows != NO_ROW
    # one entry per object, level and patch: the anchors of one row share its decision
    triples = np.stack([positives[known, 0], rows[known], positives[known, 1]], axis=1).astype(np.int64)
    triples, counts = np.unique(triples, axis=0, return_counts=True)
    objects, rows, levels = triples.T
    totals = np.bincount(objects, weights=counts, minlength=len(sizes))
    return _unit(layer, objects, rows, levels, sizes, counts / totals[objects])


def unit_without_levels(layer: LayerFindings, sizes: np.ndarray) -> Unit:
    """Every object at level 0 with the row at its centre: for detectors whose boxes have no level of a pyramid."""
    objects = np.flatnonzero(layer.truth_rows != NO_ROW)
    return _unit(layer, objects, layer.truth_rows[objects], np.zeros(len(objects), dtype=np.int64), sizes)


def token_unit(layer: LayerFindings, sizes: np.ndarray) -> Unit:
    """Every object with the token that stands for it, at the level of the token's map."""
    objects = np.flatnonzero(layer.truth_rows != NO_ROW)
    rows = layer.truth_rows[objects]
    return _unit(layer, objects, rows, layer.levels[rows], sizes)


def places_in_image(unit: Unit, seed: int) -> np.ndarray:
    """(n,) place of each entry's row among the rows of its image and level, in random order.

    For rows that are queries, regions or tokens: each has objects of its own, so an image has as many as objects, and
    they have no place that images share.

    Args:
        unit: entries.
        seed: of the order.
    """
    rows, entry = np.unique(unit.rows, return_inverse=True)
    group = np.empty(len(rows), dtype=np.int64)  # of one image and level
    group[entry] = unit.image_ids * (unit.levels.max(initial=0) + 1) + unit.levels
    order = np.lexsort((np.random.default_rng(seed).random(len(rows)), group))
    first = np.searchsorted(group[order], group[order])
    place = np.empty(len(rows), dtype=np.int64)
    place[order] = np.arange(len(rows)) - first
    return place[entry]


def image_unit(layer: LayerFindings, image_ids: np.ndarray, areas: np.ndarray) -> list[dict]:
    """Correlates an image's gate weights with the size of its objects, level by level.

    Args:
        layer: findings on one layer.
        image_ids: (g,) image of each object.
        areas: (g,) area of each object in pixels.

    Returns:
        Per level and expert: Spearman's rank correlation over images between the mean weight of the expert and the
        mean of ``log(area)``, its two-sided p-value and n images; None where it is undefined.
    """
    images, inverse = np.unique(image_ids, return_inverse=True)
    logs = np.log(np.maximum(areas, 1.0))
    mean_size = np.bincount(inverse, weights=logs) / np.bincount(inverse)
    weights = _normalised(layer.weights)
    found = []
    for level in np.unique(layer.levels):
        at = (layer.levels == level) & np.isin(layer.image_ids, images)
        position = np.searchsorted(images, layer.image_ids[at])
        counts = np.bincount(position, minlength=len(images))
        seen = counts > 0
        for expert in range(weights.shape[1]):
            sums = np.bincount(position, weights=weights[at, expert], minlength=len(images))
            mean_weight = sums[seen] / counts[seen]
            rho = p_value = None
            if seen.sum() >= FEWEST_IMAGES_CORRELATED and np.ptp(mean_weight) > 0 and np.ptp(mean_size[seen]) > 0:
                rho, p_value = map(float, spearmanr(mean_weight, mean_size[seen]))
            found.append({'level': int(level), 'expert': expert, 'rho': rho, 'p_value': p_value, 'n': int(seen.sum())})
    return found


def lift(
    unit: Unit, num_sizes: int, samples: int, seed: int, slots: int = 1
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """How much more often an expert serves a size than it serves anything: ``P(expert | size) / P(expert)``.

    Args:
        unit: entries; each counts by its share, for its top expert, or in equal parts for that of every slot.
        num_sizes: S.
        samples: bootstrap samples of images; 0 gives no interval.
        seed: of the samples.
        slots: G.

    Returns:
        (E, S) lift, NaN where an expert or a size has no entry, and the 95 % percentile interval's two ends.
    """
    num_experts = unit.experts.shape[1]
    images, image = np.unique(unit.image_ids, return_inverse=True)
    cells = (image[:, None] * num_experts + top_experts(unit.experts, slots)) * num_sizes + unit.sizes[:, None]
    parts = np.repeat(unit.shares / slots, slots)
    tables = np.bincount(cells.ravel(), weights=parts, minlength=len(images) * num_experts * num_sizes)
    tables = tables.reshape(len(images), num_experts * num_sizes)
    observed = _lift_of(tables.sum(0).reshape(1, num_experts, num_sizes))[0]
    if not samples or len(images) < 2:
        return observed, None, None
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, samples, 500):
        count = min(500, samples - start)
        times = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), size=count)
        drawn.append(_lift_of((times @ tables).reshape(count, num_experts, num_sizes)))
    with np.errstate(all='ignore'):
        low, high = _quantiles(np.concatenate(drawn))
    return observed, low, high


def _quantiles(lifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2.5 % and 97.5 % over the first axis; NaN for cells that some samples leave undefined."""
    return tuple(np.quantile(lifts, (0.025, 0.975), axis=0))


def _lift_of(tables: np.ndarray) -> np.ndarray:
    """(B, E, S) counts -> lift; NaN where it is undefined."""
    total = tables.sum(axis=(1, 2), keepdims=True)
    expected = tables.sum(axis=2, keepdims=True) * tables.sum(axis=1, keepdims=True)
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(expected > 0, tables * total / expected, np.nan)
