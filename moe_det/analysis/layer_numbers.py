"""Measurements as the plain values that the results file holds.

Letters: E experts, S sizes, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import DataError
from .ground_truth import WHOLE, GroundTruth
from .random_gates import RandomGates
from .result import SpecializationResult
from .sizes import RELATIVE_NAMES, SIZE_NAMES, RelativeSizes
from .units import Unit


def size_table(ground_truth: GroundTruth, matches: np.ndarray) -> list[dict]:
    """The sizes with their limits and how many objects each has.

    Raises:
        DataError: a size has no object.
    """
    sizes = ground_truth.objects.sizes
    table = []
    for size, (name, (low, high)) in enumerate(zip(SIZE_NAMES, ground_truth.area_ranges()[1:], strict=True)):
        at = sizes == size
        if not at.any():
            bound = f'{low:g} to {high:g}' if high < WHOLE else f'{low:g} and more'
            raise DataError(
                f'{ground_truth.path}: none of the {len(sizes)} objects in {len(ground_truth.image_ids)} images is '
                f'{name} (area {bound} square pixels): take more images, or set other sides with --area-ranges'
            )
        table.append(
            {
                'name': name,
                'low': low,
                'high': high if high < WHOLE else None,
                'objects': int(at.sum()),
                'matched': int((matches[at] >= 0).sum()),
            }
        )
    return table


def relative_table(relative: RelativeSizes) -> dict:
    """The areas that part the sizes within each level, for the report."""
    limits = [
        {'level': int(level), 'areas': row.tolist()}
        for level, row in zip(relative.levels, relative.limits, strict=True)
    ]
    return {'names': list(RELATIVE_NAMES), 'limits': limits}


def by_level(result: SpecializationResult, levels: Sequence[int]) -> np.ndarray:
    """(L, E, S) objects, with zeros for levels that have none."""
    table = np.zeros((len(levels), *result.expert_by_size.shape))
    for position, level in enumerate(result.levels):
        table[levels.index(level)] = result.expert_by_size_by_level[..., position]
    return table


def gate_numbers(gates: RandomGates | str) -> dict | None:
    """The trained gate among random ones; None where that could not be had."""
    if isinstance(gates, str):
        return None
    low, median, high = np.quantile(gates.values, (0.025, 0.5, 0.975))
    return {
        'count': len(gates.values),
        'quantile': gates.quantile,
        'bits': gates.bits,
        'median_bits': float(median),
        'low_bits': float(low),
        'high_bits': float(high),
        'values': gates.values.tolist(),
    }


def result_numbers(result: SpecializationResult, unit: Unit) -> dict:
    """What is shown of a measurement, as plain values."""
    size = result.relative_size
    return {
        'mi_bits': result.mi_bits,
        'mi_p_value': result.mi_p_value,
        'mi_cramers_v': result.mi_cramers_v,
        'mi_given_level_bits': result.mi_given_level_bits,
        'mi_given_level_ci': _interval(result.mi_given_level_ci),
        'null_99_bits': result.null_99,
        'p_value': result.p_value,
        'p_value_holm': None,
        'p_value_reason': result.reason or None,
        'cramers_v_given_level': result.cramers_v_given_level,
        'ceiling_bits': result.h_size_given_level,
        'expert_by_size': plain(result.expert_by_size),
        'relative_size': None
        if size is None
        else {
            'mi_bits': size.mi_bits,
            'mi_ci': _interval(size.mi_ci),
            'null_99_bits': size.null_99,
            'p_value': size.p_value,
            'p_value_holm': None,
            'p_value_reason': size.reason or None,
            'cramers_v': size.cramers_v,
            'ceiling_bits': size.ceiling_bits,
            'expert_by_size': plain(size.expert_by_size),
        },
        'n_objects': len(np.unique(unit.objects)),
        'n_images': int(result.num_images),
    }


def _interval(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def unit_numbers(result: SpecializationResult | str, unit: Unit) -> dict:
    """Numbers of one unit, or why there is no measurement."""
    return {'unavailable': result} if isinstance(result, str) else result_numbers(result, unit)


def of_experts(precisions: Mapping[str, dict], layer: str, num_experts: int, kind: str) -> list[dict]:
    """Average precisions when each expert of a layer is ``'forced'`` or ``'knocked_out'``, where they were measured."""
    names = [f'{layer}/{kind}/{expert}' for expert in range(num_experts)]
    return [{'expert': e, **precisions[name]} for e, name in enumerate(names) if name in precisions]


def plain(values: np.ndarray | None) -> list | float | None:
    """Nested lists, or a number, with None for what is not a number: JSON has no NaN."""
    if values is None:
        return None
    if np.ndim(values) == 0:
        return float(values) if np.isfinite(values) else None
    return [plain(value) for value in values]
