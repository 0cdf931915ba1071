"""How numbers are printed: with sensible digits, the same in figures, on the page and on the console."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..analysis.definitions import MINUS, MISSING
from ..checks import is_number
from ..errors import DataError

RESULTS_FORMAT = 2


@dataclass(frozen=True)
class Number:
    """A value and its printed form.

    Attributes:
        value: the value as it stands in the results, or None.
        text: what the reader sees; :data:`MISSING` where there is no value.
        why: what to say where there is no value.
    """

    value: float | int | None
    text: str
    why: str = ''


def finite(value: object) -> float | int | None:
    """The value if it is a finite number, else None."""
    return value if is_number(value) else None


def readable(results: dict) -> dict:
    """A copy of the results in which every number that is not finite is None.

    Raises:
        DataError: they have another format than the one that is drawn here.
    """
    found = results.get('format')
    if found != RESULTS_FORMAT:
        raise DataError(
            f'the results have format {found}, not {RESULTS_FORMAT}: measure the checkpoint again (moe-det report)'
        )
    return cleaned(results)


def cleaned(node: object) -> Any:
    """A copy of nested results in which every number that is not finite is None."""
    if isinstance(node, dict):
        return {key: cleaned(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [cleaned(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _number(value: object, form: str, why: str = '', scale: float = 1.0, unit: str = '') -> Number:
    value = finite(value)
    if value is None:
        return Number(None, MISSING, why)
    text = format(value * scale, form)
    if text.lstrip('+-').strip('0.,') == '':  # no negative zero
        text = text.lstrip('+-')
    return Number(value, text.replace('-', MINUS) + unit)


def bits(value: float | None, why: str = '') -> Number:
    """Information in bits."""
    return _number(value, '.4f', why)


def fixed(value: float | None, digits: int = 2, why: str = '') -> Number:
    """A plain number with fixed digits: effect sizes, weights, correlations, entropies."""
    return _number(value, f'.{digits}f', why)


def p_value(value: float | None, why: str = '') -> Number:
    """A p-value; small ones as a bound, since the digits of a permutation test end there."""
    number = _number(value, '.4f', why)
    if number.value is not None and number.value < 0.0001:
        return Number(number.value, '< 0.0001')
    return number


def average_precision(value: float | None, why: str = '') -> Number:
    """Average precision in points: 0.384 is printed as 38.4."""
    return _number(value, '.1f', why, scale=100)


def ap_difference(value: float | None, reference: float | None) -> Number:
    """Difference of two average precisions in points, with its sign."""
    value, reference = finite(value), finite(reference)
    return points(None if value is None or reference is None else value - reference)


def points(difference: float | None, why: str = '') -> Number:
    """A difference of average precisions, from -1 to 1, in points with its sign."""
    return _number(difference, '+.1f', why, scale=100)


def points_interval(bounds: list[float] | None) -> Number:
    """An interval of a difference of average precisions in points, as ``[low, high]``; its value is the low bound."""
    if bounds is None or len(bounds) != 2 or finite(bounds[0]) is None or finite(bounds[1]) is None:
        return Number(None, '')
    low, high = (points(bound).text for bound in bounds)
    return Number(bounds[0], f'[{low}, {high}]')


def share(value: float | None, why: str = '', digits: int | None = None) -> Number:
    """A share from 0 to 1 in percent, with one digit where it is small unless ``digits`` says otherwise."""
    value = finite(value)
    if digits is None:
        digits = 0 if value is not None and value >= 0.0995 else 1
    return _number(value, f'.{digits}f', why, scale=100, unit=' %')


def lift(value: float | None, why: str = '') -> Number:
    """A lift: how many times the base rate."""
    value = finite(value)
    return _number(value, '.2f' if value is None or value < 10 else '.1f', why)


def count(value: float | None, why: str = '', whole: bool | None = None) -> Number:
    """A number of things; sums of weights keep one digit, whether ``whole`` says so or the value itself."""
    value = finite(value)
    if whole is None:
        whole = value is None or float(value).is_integer()
    return _number(value, ',.0f' if whole else ',.1f', why)


def area(value: float | None, why: str = '') -> Number:
    """An area in whole pixels."""
    return _number(value, ',.0f', why)


def interval(bounds: Sequence[float | None] | None, digits: int = 4) -> Number:
    """An interval as ``[low, high]``; its value is the low bound."""
    if bounds is None or len(bounds) != 2 or finite(bounds[0]) is None or finite(bounds[1]) is None:
        return Number(None, '')
    low, high = (_number(bound, f'.{digits}f').text for bound in bounds)
    return Number(bounds[0], f'[{low}, {high}]')


def size_range(size: dict) -> str:
    """A size class's range of areas in pixels: ``< 32²``, ``32²–96²``, ``> 96²``."""
    low, high = finite(size.get('low')), finite(size.get('high'))
    smallest = None if not low else _side(low)
    largest = None if high is None or high >= 1e9 else _side(high)
    if smallest and largest:
        return f'{smallest}–{largest} px'
    return f'< {largest} px' if largest else f'> {smallest} px' if smallest else 'any area'


def _side(area: float) -> str:
    side = math.isqrt(round(area))
    return f'{side}²' if side * side == area else f'{area:,.0f}'
