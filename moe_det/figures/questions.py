"""The three questions in numbers: what the page's tables and charts show of sorting, random gates and the swap test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import values
from .tables import expert_name, num_slots
from .values import Number, finite

COCO = ('AP', 'AP_S', 'AP_M', 'AP_L')
THIRDS = ('AP_lower', 'AP_middle', 'AP_upper')
MEASURES = (*COCO, *THIRDS)
MEASURE_NAMES = dict(zip(MEASURES, (*COCO, 'lower third', 'middle third', 'upper third'), strict=True))


@dataclass(frozen=True)
class Given:
    """Information about one kind of size given the level; what is not known is None.

    Attributes:
        bits: the information.
        interval: its 95 % interval.
        ceiling: H(size | level), bits.
        chance: what chance exceeds in 1 % of permutations, bits.
        p_value: adjusted over the layers where ``adjusted``.
        plain_p_value: as measured, where ``p_value`` is adjusted; else None.
        reason: why there is no p-value.
        effect: Cramér's V.
        adjusted: the p-value is Holm's.
    """

    bits: float | None
    interval: list | None
    ceiling: float | None
    chance: float | None
    p_value: float | None
    plain_p_value: float | None
    reason: str
    effect: float | None
    adjusted: bool


@dataclass(frozen=True)
class UnitRow:
    """What one unit says of the first question.

    Attributes:
        name: ``'detection'`` or ``'training'``.
        unavailable: why the unit cannot be had, or empty.
        relative: of relative size; None without.
        coco: of COCO's bins.
        unit: its numbers in the results.
    """

    name: str
    unavailable: str
    relative: Given | None
    coco: Given
    unit: dict


def unit_rows(layer: dict) -> list[UnitRow]:
    """The detection and the training unit of a layer; numbers of the main unit have p-values adjusted over layers."""
    rows = []
    for name in ('detection', 'training'):
        unit = (layer.get('units') or {}).get(name) or {}
        whole = layer if name == layer.get('main_unit') else {}
        unavailable = unit.get('unavailable') or ('' if unit else 'not measured')
        relative = unit.get('relative_size')
        rows.append(
            UnitRow(
                name,
                str(unavailable),
                None if relative is None else _relative(relative, whole.get('relative_size') or {}),
                _coco(unit, whole),
                unit,
            )
        )
    return rows


def _relative(relative: dict, whole: dict) -> Given:
    return Given(
        relative.get('mi_bits'),
        relative.get('mi_ci'),
        relative.get('ceiling_bits'),
        relative.get('null_99_bits'),
        *_p_values(relative, whole),
        str(relative.get('p_value_reason') or ''),
        relative.get('cramers_v'),
        _adjusted(relative, whole) is not None,
    )


def _coco(unit: dict, whole: dict) -> Given:
    return Given(
        unit.get('mi_given_level_bits'),
        unit.get('mi_given_level_ci'),
        unit.get('ceiling_bits'),
        whole.get('null_99_bits', unit.get('null_99_bits')),
        *_p_values(unit, whole),
        str(unit.get('p_value_reason') or ''),
        unit.get('cramers_v_given_level'),
        _adjusted(unit, whole) is not None,
    )


def _adjusted(measured: dict, whole: dict) -> float | None:
    adjusted = finite(whole.get('p_value_holm'))
    return finite(measured.get('p_value_holm')) if adjusted is None else adjusted


def _p_values(measured: dict, whole: dict) -> tuple[float | None, float | None]:
    adjusted, plain = _adjusted(measured, whole), finite(measured.get('p_value'))
    return (plain, None) if adjusted is None else (adjusted, plain)


@dataclass(frozen=True)
class Change:
    """A change of routing and what it does to the average precisions.

    Attributes:
        kind: ``'swap'``, ``'all'``, ``'levels'``, ``'fixed'`` or ``'best'``.
        name: in words.
        note: what is to be known of it.
        measures: name of an average precision -> ``difference``, ``interval``, ``p_value``.
    """

    kind: str
    name: str
    note: str
    measures: dict

    def numbers(self, name: str) -> tuple[Number, Number, Number]:
        """Difference in points, its interval, and the p-value of a loss."""
        measure = self.measures.get(name) or {}
        # the test is of a loss, which the best route does not have
        p_value = values.p_value(None if self.kind == 'best' else measure.get('p_value'))
        if p_value.value is not None:
            p_value = Number(p_value.value, f'p {p_value.text}')
        return (
            values.points(measure.get('difference')),
            values.points_interval(measure.get('interval')),
            p_value if p_value.value is not None else Number(None, ''),
        )

    def difference(self, name: str) -> float | None:
        """Difference from 0 to 1, or None."""
        return finite((self.measures.get(name) or {}).get('difference'))

    def interval(self, name: str) -> list | None:
        """Its bounds, or None."""
        bounds = (self.measures.get(name) or {}).get('interval')
        return None if bounds is None or None in (finite(bounds[0]), finite(bounds[1])) else bounds


def changes(results: dict, layer: dict) -> list[Change]:
    """The swap test of a layer, of all layers at once, and the other routes that were tried."""
    found = []
    swap, everywhere, routes = layer.get('swap'), results.get('swap'), layer.get('routes') or {}
    if swap:
        found.append(Change('swap', 'swap test, this layer', _draws(swap), swap))
    if everywhere:
        found.append(Change('all', 'swap test, all layers', _draws(everywhere), everywhere))
    if routes.get('between_levels'):
        found.append(Change('levels', 'routes between levels', '', routes['between_levels']))
    if routes.get('fixed'):
        experts = [expert for expert in routes['fixed'].get('experts') or [] if finite(expert) is not None]
        found.append(Change('fixed', 'one fixed route', _experts(layer, experts), routes['fixed']))
    if routes.get('best_per_image'):
        best = routes['best_per_image']
        note = f'of {best["candidates"]}; ' if best.get('candidates') else ''
        found.append(Change('best', 'best route per image', note + 'upper bound, uses the ground truth', best))
    return found


def _experts(layer: dict, experts: Sequence[int]) -> str:
    if not experts:
        return ''
    if num_slots(layer) > 1:
        return '; '.join(expert_name(layer, expert) for expert in experts)
    return f'experts {" + ".join(map(str, experts))}'


def _draws(swap: dict) -> str:
    draws, swapped, left = (values.count(swap.get(key)).text for key in ('draws', 'images', 'images_left'))
    note = f'{draws} draws, {swapped} images'
    return note if not swap.get('images_left') else f'{note}, {left} kept their own'
