"""Tests that are not used, on the same data: they show what the one that is used is for."""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2

from moe_det.analysis.information import conditional_mutual_information, mean_square_contingency
from moe_det.analysis.permutation import upper_tail
from moe_det.analysis.rows import gather_rows

from .routers import EXPERTS, SIZES
from .worlds import Unit

PERMUTATIONS = 199


def chi_square_p(tables: np.ndarray) -> float:
    """p-value of the chi-squares of (L, E, S) tables, as if objects were independent."""
    rows, columns = (tables.sum(2) > 0).sum(1), (tables.sum(1) > 0).sum(1)
    freedom = int((np.maximum(rows - 1, 0) * np.maximum(columns - 1, 0)).sum())
    return float(chi2.sf(mean_square_contingency(tables) * tables.sum(), freedom)) if freedom else 1.0


def free_rows_p(unit: Unit, rng: np.random.Generator) -> float:
    """p-value when rows are exchanged freely: each level on its own, whatever the number of objects."""
    arrays = {name: values for name, values in unit.items() if name not in ('areas', 'groups')}
    rows = gather_rows(**arrays, num_experts=EXPERTS, num_sizes=SIZES)
    shape = PERMUTATIONS, len(rows.levels), EXPERTS, SIZES
    null, observed = np.zeros(shape), rows.image_tables().sum(0)
    for slot in rows.slots:
        order = rng.random((PERMUTATIONS, len(slot.images))).argsort(1)
        null[:, slot.level] += slot.masses[order].swapaxes(1, 2) @ slot.counts
    return upper_tail(float(conditional_mutual_information(observed)), conditional_mutual_information(null))[0]
