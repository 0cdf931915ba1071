"""Whether values that a user gives are the numbers, flags and names that are expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

from .errors import MoEConfigError, unknown_name


def is_integer(value: object, minimum: int) -> TypeGuard[int]:
    """Whether a value is an integer >= ``minimum``; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return False
    number: Any = value  # which numbers.Integral does not let be compared with int
    return bool(number >= minimum)


def is_number(value: object, minimum: float = -math.inf) -> TypeGuard[float]:
    """Whether a value is a finite number >= ``minimum``; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    number: Any = value  # which numbers.Real does not let be compared with floats
    return bool(minimum <= number < math.inf and number > -math.inf)


def checked_number(key: str, value: object, minimum: float = 0.0) -> float:
    """Returns ``value`` as a float.

    Raises:
        ValueError: it is no finite number or smaller than ``minimum``.
    """
    if not is_number(value, minimum):
        raise ValueError(f'{key}={value!r}: expected a number >= {minimum:g}')
    return float(value)


def check_choice(where: str, key: str, value: object, choices: Sequence[str]) -> None:
    """Raises MoEConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise MoEConfigError(f'{where}.{key}: {unknown_name("value", value, choices)}')


def check_count(where: str, key: str, value: object, minimum: int = 1) -> None:
    """Raises MoEConfigError unless ``value`` is an integer >= ``minimum``."""
    if not is_integer(value, minimum):
        raise MoEConfigError(f'{where}.{key}={value!r}: expected an integer >= {minimum}')


def check_flag(where: str, key: str, value: object) -> None:
    """Raises MoEConfigError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise MoEConfigError(f'{where}.{key}={value!r}: expected True or False')
