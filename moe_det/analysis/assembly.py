"""From findings to results: everything that the report shows, as plain numbers.

The keys of the results are documented in ``docs/size_specialization.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from . import counterfactual, slots, units
from .ground_truth import GroundTruth
from .inputs import NUMBERED, QUERY, TOKEN, Analysed, LayerInfo
from .layer_numbers import by_level, gate_numbers, of_experts, plain, result_numbers, unit_numbers
from .random_gates import RandomGates, random_gates
from .result import SpecializationResult, adjust_for_layers
from .sentences import layer_sentence, plain_sentence
from .sizes import QUANTILES, SIZE_NAMES, RelativeSizes, relative_sizes
from .specialization import measure_specialization
from .swap_results import route_results, swap_results
from .usage import usage_of_rows
from .verdicts import Evidence, TooLittle, decide

if TYPE_CHECKING:
    from ..probing.findings import LayerFindings

NO_SWAP_OF_TOKENS = 'an image has too many tokens to keep the decisions about all of them'
LIFT_SAMPLES = 2000  # bootstrap samples of the lift's intervals; percentiles need no more


@dataclass
class LayerAnalysis:
    """One layer: its units, what was measured of them, and the numbers of the report.

    Attributes:
        info: of the layer.
        has_levels: see :meth:`~moe_det.analysis.inputs.Analysed.has_levels`.
        units: by name.
        measured: by name the measurement, or why it cannot be had.
        gates: the trained gate among random ones, or why that cannot be had.
        numbers: of the report; :func:`conclude` adds what needs all layers.
    """

    info: LayerInfo
    has_levels: bool
    units: dict[str, units.Unit]
    measured: dict[str, SpecializationResult | str]
    gates: RandomGates | str
    numbers: dict = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The unit of the layer's own numbers."""
        return 'training' if isinstance(self.measured['detection'], str) else 'detection'

    @property
    def result(self) -> SpecializationResult:
        """The measurement of the main unit.

        Raises:
            DataError: neither unit can be measured.
        """
        result = self.measured[self.main]
        if isinstance(result, str):
            reasons = '; '.join(f'{name} unit: {reason}' for name, reason in self.measured.items())
            raise DataError(f'{self.info.name}: nothing can be measured ({reasons})')
        return result


def layer_results(info: LayerInfo, analysed: Analysed) -> LayerAnalysis:
    """Everything about one layer; the verdict comes with :func:`conclude`, which sees all layers.

    Raises:
        DataError: neither unit can be measured, or the findings are about other objects.
    """
    findings, objects, settings = analysed.findings, analysed.ground_truth.objects, analysed.settings
    layer = findings.layers[info.name]
    by_image = units.decides_per_image(layer)
    has_levels = analysed.has_levels(info)
    several = has_levels and info.unit != QUERY
    made = make_units(info, analysed)
    measured: dict[str, SpecializationResult | str] = {}
    for name, unit in made.items():
        reason = analysed.why_unavailable(info, name)
        if reason is None and len(np.unique(unit.sizes)) < 2:
            count = len(np.unique(unit.objects))
            reason = TooLittle(f'its {count} objects are all of one size' if count else 'it has no object')
        measured[name] = reason or measure(unit, info, analysed, hard=name == 'detection')
    found = LayerAnalysis(info, has_levels, made, measured, _random_gates(info, made['training'], measured, analysed))
    result, unit = found.result, made[found.main]
    observed, low, high = units.lift(
        unit, len(SIZE_NAMES), min(settings.bootstrap, LIFT_SAMPLES), settings.seed, info.slots
    )
    forced = of_experts(analysed.precisions, info.name, info.num_experts, 'forced')
    agrees = counterfactual.agreement(result.expert_by_size_by_level, forced, info.slots)
    levels = sorted({int(level) for of_unit in made.values() for level in of_unit.levels})
    if not by_image:
        levels = sorted({*levels, *map(int, np.unique(layer.levels))})
    table = by_level(result, levels)
    found.numbers = {
        **vars(info),
        'constraints': list(info.constraints),
        'levels': levels if has_levels else [],
        'main_unit': found.main,
        **result_numbers(result, unit),
        'level_mi_bits': None if info.unit == QUERY else result.level_mi_bits,
        'level_p_value': result.level_p_value,
        'lift': plain(observed),
        'lift_low': plain(low),
        'lift_high': plain(high),
        'expert_by_level': plain(table.sum(2).T) if several else [],
        'expert_by_size_by_level': plain(table) if several else [],
        'units': {
            **{name: unit_numbers(value, made[name]) for name, value in measured.items()},
            'image': {'spearman': units.image_unit(layer, objects.image_ids, objects.areas)},
        },
        'random_gates': gate_numbers(found.gates),
        'random_gates_reason': found.gates if isinstance(found.gates, str) else None,
        'swap': None if analysed.routes is None else swap_results(analysed.routes, info.name, analysed.donors),
        'swap_reason': NO_SWAP_OF_TOKENS if info.unit == TOKEN else analysed.donors.reason,
        'routes': None
        if analysed.routes is None
        else route_results(analysed.routes, info.name, analysed.losses, analysed.donors),
        'forced': forced,
        'knocked_out': of_experts(analysed.precisions, info.name, info.num_experts, 'knocked_out'),
        'counterfactual': {
            'agreement': agrees,
            'agrees': None if agrees is None else agrees > 0,
            **counterfactual.spreads(forced),
        },
        'utilisation': usage_of_rows(layer.weights, layer.probs, info.slots),
        'utilisation_by_level': [] if by_image or info.unit == QUERY else _usage_by_level(layer, info.slots),
    }
    return found


def _usage_by_level(layer: LayerFindings, num_slots: int) -> list[dict]:
    found = []
    for level in map(int, np.unique(layer.levels)):
        at = layer.levels == level
        found.append({'level': level, **usage_of_rows(layer.weights[at], layer.probs[at], num_slots)})
    return found


def measure(unit: units.Unit, info: LayerInfo, analysed: Analysed, hard: bool) -> SpecializationResult:
    """The statistics of one unit; see :func:`~moe_det.analysis.specialization.measure_specialization`.

    Args:
        unit: entries.
        info: of the layer.
        analysed: areas, groups and settings.
        hard: take each entry's top expert (of every slot) alone instead of all its weights.
    """
    settings, groups = analysed.settings, analysed.groups
    tops = slots.masses_of(slots.top_experts(unit.experts, info.slots), info.num_experts)
    return measure_specialization(
        unit.image_ids,
        unit.levels,
        tops if hard else unit.experts,
        unit.sizes,
        num_experts=info.num_experts,
        num_sizes=len(SIZE_NAMES),
        permutations=settings.permutations,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
        patches=units.places_in_image(unit, settings.seed) if info.unit in NUMBERED else unit.patches,
        weights=unit.shares,
        # without levels nothing is relative to them
        areas=analysed.ground_truth.objects.areas[unit.objects] if analysed.has_levels(info) else None,
        groups=None if groups is None else [groups[image] for image in unit.image_ids],
        expert_slots=info.slots,
    )


def make_units(info: LayerInfo, analysed: Analysed) -> dict[str, units.Unit]:
    """The detection and the training unit of a layer.

    Raises:
        DataError: the findings are about other objects.
    """
    findings, objects = analysed.findings, analysed.ground_truth.objects
    layer = findings.layers[info.name]
    if len(findings.truths) != len(objects.areas):
        raise DataError(
            f'the detector was asked about {len(findings.truths)} objects, not the {len(objects.areas)} of the '
            'annotations: was the file changed meanwhile?'
        )
    matches = analysed.matches
    if info.unit == TOKEN:
        matches = np.full_like(matches, -1)
        training = units.token_unit(layer, objects.sizes)
    elif analysed.has_levels(info):
        training = units.training_unit(layer, findings.positives, objects.sizes)
    else:
        training = units.unit_without_levels(layer, objects.sizes)
    return {
        'detection': units.detection_unit(layer, matches, findings.detection_levels, objects.sizes),
        'training': training,
    }


def relative_sizes_of(unit: units.Unit, ground_truth: GroundTruth) -> RelativeSizes:
    """Sizes of a unit's entries within their levels."""
    return relative_sizes(ground_truth.objects.areas[unit.objects], unit.levels, unit.shares)


def _random_gates(
    info: LayerInfo, unit: units.Unit, measured: Mapping[str, SpecializationResult | str], analysed: Analysed
) -> RandomGates | str:
    layer, settings = analysed.findings.layers[info.name], analysed.settings
    if not analysed.has_levels(info):
        return 'the objects of this detector have no level of a pyramid'
    if isinstance(measured['training'], str):
        return f'there is no training unit: {measured["training"]}'
    if info.num_experts <= info.slots:
        return 'a single expert needs no gate'
    return random_gates(
        layer.features,
        slots.top_experts(layer.weights, info.slots),
        layer.levels,
        num_experts=info.num_experts,
        rows=unit.rows,
        sizes=relative_sizes_of(unit, analysed.ground_truth).bins,
        entry_levels=unit.levels,
        weights=unit.shares,
        num_sizes=QUANTILES,
        count=settings.random_gates,
        seed=settings.seed,
    )


def conclude(layers: Sequence[LayerAnalysis]) -> dict[str, SpecializationResult]:
    """Adds what needs all layers to their numbers: adjusted p-values, verdicts and sentences.

    Args:
        layers: all layers that were looked at.

    Returns:
        The measurements of the main unit by layer, with p-values adjusted over the layers.
    """
    for name in ('detection', 'training'):
        measured = {layer.info.name: layer.measured[name] for layer in layers}
        known = {layer: result for layer, result in measured.items() if not isinstance(result, str)}
        adjusted = adjust_for_layers(known)
        for layer in layers:
            if layer.info.name in adjusted:
                layer.measured[name] = adjusted[layer.info.name]
    for layer in layers:
        numbers = layer.numbers
        for name, result in layer.measured.items():
            if isinstance(result, str):
                continue
            for place in [numbers['units'][name], *([numbers] if name == layer.main else [])]:
                place['p_value_holm'] = result.adjusted_p_value
                if result.relative_size is not None:
                    place['relative_size']['p_value_holm'] = result.relative_size.adjusted_p_value
            numbers['units'][name]['sorts'] = result.sorts if layer.has_levels else None
            numbers['units'][name]['verdict'] = result.verdict
        evidence = Evidence(
            layer.measured['detection'],
            layer.measured['training'],
            layer.has_levels,
            None if isinstance(layer.gates, str) else layer.gates.beyond,
            None if numbers['swap'] is None else numbers['swap']['costs'],
            '' if numbers['swap'] is None else numbers['swap']['costs_reason'] or '',
        )
        numbers['verdict'], numbers['undetermined_reason'] = decide(evidence)
        numbers['notes'] = list(layer.result.notes)
        numbers['plain'] = plain_sentence(numbers)
        numbers['sentence'] = layer_sentence(numbers)
    return {layer.info.name: layer.result for layer in layers}
