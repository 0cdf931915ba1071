"""From findings to results: everything that the report shows, as plain numbers.

The keys of the results are documented in ``docs/size_specialization.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from . import counterfactual, units
from .ground_truth import SIZE_NAMES, WHOLE, GroundTruth
from .result import SpecializationResult, adjust_for_layers
from .sentences import layer_sentence
from .specialization import measure_specialization
from .usage import usage_of_rows

LIFT_SAMPLES = 2000  # bootstrap samples of the lift's intervals; percentiles need no more


@dataclass(frozen=True)
class LayerInfo:
    """What the model says of a layer.

    Attributes:
        name: path in the model.
        unit: ``'level'``, ``'image'`` or ``'patch'``.
        grid: cells per axis for patches, else None.
        num_experts: E.
        top_k: K.
        balance_over: ``'all'`` or ``'level'``.
        constraints: keys of its constraints.
    """

    name: str
    unit: str
    grid: int | None
    num_experts: int
    top_k: int
    balance_over: str
    constraints: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """Settings of the statistics.

    Attributes:
        permutations: of routing rows between images.
        bootstrap: samples of images.
        seed: of both.
    """

    permutations: int = 10000
    bootstrap: int = 10000
    seed: int = 0


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


def layer_results(
    info: LayerInfo,
    findings,
    matches: np.ndarray,
    ground_truth: GroundTruth,
    precisions: Mapping[str, dict],
    settings: Settings,
    unavailable: Mapping[str, str | None],
) -> tuple[dict, SpecializationResult]:
    """Everything about one layer; the verdict comes with :func:`decide`, which sees all layers.

    Args:
        info: of the layer.
        findings: :class:`moe_det.probing.findings.Findings` on all images.
        matches: (g,) detection that each object is matched by, -1 where none.
        ground_truth: the objects.
        precisions: average precisions by the name of the condition.
        settings: of the statistics.
        unavailable: for ``'detection'`` and ``'training'`` why the unit cannot be had, or None.

    Returns:
        Numbers for the report, and the measurement of the main unit, which is the detection unit where it can be had.
    """
    layer = findings.layers[info.name]
    objects = ground_truth.objects
    by_image = units.decides_per_image(layer)
    made = make_units(findings, info, matches, ground_truth)
    measured = {}
    for name, unit in made.items():
        reason = None if by_image else unavailable.get(name)
        if reason is None and len(np.unique(unit.sizes)) < 2:
            reason = 'fewer than two sizes have an object here'
        measured[name] = reason or measure(unit, info, settings, hard=name == 'detection')
    main = 'training' if isinstance(measured['detection'], str) else 'detection'
    if isinstance(measured[main], str):
        raise DataError(f'{info.name}: nothing can be measured: {measured[main]}')
    result, unit = measured[main], made[main]
    observed, low, high = units.lift(unit, len(SIZE_NAMES), min(settings.bootstrap, LIFT_SAMPLES), settings.seed)
    forced = _of_experts(precisions, info, 'forced')
    agrees = counterfactual.agreement(result.expert_by_size_by_level, forced)
    levels = sorted(int(level) for level in np.unique(layer.levels))
    result = result.with_counterfactual(agrees is not None and agrees > 0)
    numbers = {
        **vars(info),
        'constraints': list(info.constraints),
        'levels': [] if by_image else levels,
        'main_unit': main,
        **_numbers(result, unit),
        'level_mi_bits': result.level_mi_bits,
        'null_99_bits': result.null_99,
        'level_p_value': result.level_p_value,
        'p_value_reason': result.reason or None,
        'lift': _plain(observed),
        'lift_low': _plain(low),
        'lift_high': _plain(high),
        'expert_by_level': _plain(_all_levels(result, levels).sum(2).T),
        'expert_by_size_by_level': _plain(_all_levels(result, levels)),
        'units': {
            **{name: _unit_numbers(value, made[name]) for name, value in measured.items()},
            'image': {'spearman': units.image_unit(layer, objects.image_ids, objects.areas)},
        },
        'forced': forced,
        'knocked_out': _of_experts(precisions, info, 'knocked_out'),
        'counterfactual': {
            'agreement': agrees,
            'agrees': None if agrees is None else agrees > 0,
            **counterfactual.spreads(forced),
        },
        'utilisation': usage_of_rows(layer.weights, layer.probs),
        'utilisation_by_level': [
            {'level': level, **usage_of_rows(layer.weights[layer.levels == level], layer.probs[layer.levels == level])}
            for level in levels
        ]
        if not by_image
        else [],
        'random_gate': None,
    }
    return numbers, result


def _all_levels(result: SpecializationResult, levels: Sequence[int]) -> np.ndarray:
    """(L, E, S) objects, with zeros for levels that have none."""
    table = np.zeros((len(levels), *result.expert_by_size.shape))
    for position, level in enumerate(result.levels):
        table[levels.index(level)] = result.expert_by_size_by_level[..., position]
    return table


def measure(unit: units.Unit, info: LayerInfo, settings: Settings, hard: bool) -> SpecializationResult:
    """The statistics of one unit; see :func:`~moe_det.analysis.specialization.measure_specialization`.

    Args:
        unit: entries.
        info: of the layer.
        settings: of the statistics.
        hard: take each entry's top expert alone instead of all its weights.
    """
    return measure_specialization(
        unit.image_ids,
        unit.levels,
        unit.top_experts if hard else unit.experts,
        unit.sizes,
        num_experts=info.num_experts,
        num_sizes=len(SIZE_NAMES),
        permutations=settings.permutations,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
        patches=unit.patches,
        weights=unit.shares,
    )


def control_results(
    info: LayerInfo, findings, matches: np.ndarray, ground_truth: GroundTruth, settings: Settings, main_unit: str
) -> dict | None:
    """The statistics of a layer whose gate learnt nothing; None where there is nothing to measure.

    Args:
        info: of the layer.
        findings: on all images, with random gates.
        matches: of these findings.
        ground_truth: the objects.
        settings: of the statistics.
        main_unit: ``'detection'`` or ``'training'``, the unit to measure.
    """
    unit = make_units(findings, info, matches, ground_truth)[main_unit]
    if len(np.unique(unit.sizes)) < 2:
        return None
    numbers = _numbers(measure(unit, info, settings, hard=main_unit == 'detection'), unit)
    kept = ('mi_bits', 'mi_given_level_bits', 'p_value', 'cramers_v_given_level', 'verdict', 'n_objects')
    return {key: numbers[key] for key in kept}


def make_units(findings, info: LayerInfo, matches: np.ndarray, ground_truth: GroundTruth) -> dict[str, units.Unit]:
    """The detection and the training unit of a layer.

    Raises:
        DataError: the findings are about other objects.
    """
    layer, objects = findings.layers[info.name], ground_truth.objects
    if not np.array_equal(findings.truths, objects.ids):
        raise DataError(
            f'the detector was asked about {len(findings.truths)} objects, not the {len(objects.ids)} of the '
            'annotations: was the file changed meanwhile?'
        )
    return {
        'detection': units.detection_unit(layer, matches, objects.sizes),
        'training': units.training_unit(layer, findings.positives, objects.ids, objects.sizes),
    }


def _numbers(result: SpecializationResult, unit: units.Unit) -> dict:
    return {
        'mi_bits': result.mi_bits,
        'mi_given_level_bits': result.mi_given_level_bits,
        'mi_given_level_ci': None if result.mi_given_level_ci is None else list(result.mi_given_level_ci),
        'p_value': result.p_value,
        'cramers_v_given_level': result.cramers_v_given_level,
        'expert_by_size': _plain(result.expert_by_size),
        'n_objects': len(np.unique(unit.objects)),
        'n_images': int(result.num_images),
        'verdict': result.verdict,
    }


def _unit_numbers(result: SpecializationResult | str, unit: units.Unit) -> dict:
    return {'unavailable': result} if isinstance(result, str) else _numbers(result, unit)


def _of_experts(precisions: Mapping[str, dict], info: LayerInfo, kind: str) -> list[dict]:
    names = [f'{info.name}/{kind}/{expert}' for expert in range(info.num_experts)]
    return [{'expert': e, **precisions[name]} for e, name in enumerate(names) if name in precisions]


def _plain(values: np.ndarray | None) -> list | None:
    """Nested lists, with None for what is not a number: JSON has no NaN."""
    if values is None:
        return None
    if np.ndim(values) == 0:
        return float(values) if np.isfinite(values) else None
    return [_plain(value) for value in values]


def decide(layers: Sequence[dict], results: Sequence[SpecializationResult]) -> dict[str, SpecializationResult]:
    """Sets each layer's ``p_value_holm``, ``verdict`` and ``sentence``, in place.

    Args:
        layers: of all layers, as :func:`layer_results` returns them.
        results: their measurements.

    Returns:
        The measurements by layer, with p-values adjusted over the layers.
    """
    names = [layer['name'] for layer in layers]
    adjusted = adjust_for_layers(dict(zip(names, results, strict=True)))
    for layer in layers:
        result = adjusted[layer['name']]
        layer['p_value_holm'] = result.adjusted_p_value
        layer['verdict'] = result.verdict
        layer['notes'] = list(result.notes)
        layer['sentence'] = layer_sentence(layer)
    return adjusted
