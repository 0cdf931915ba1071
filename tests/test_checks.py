"""What counts as an integer and as a number in configs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moe_det.checks import is_integer, is_number


@pytest.mark.parametrize(
    ('value', 'integer', 'number'),
    [
        (3, True, True),
        (np.int64(3), True, True),
        (2, False, False),  # below the minimum
        (3.0, False, True),
        (np.float32(3.5), False, True),
        (True, False, False),
        ('3', False, False),
        (None, False, False),
        (math.nan, False, False),
        (math.inf, False, False),
    ],
)
def test_numbers(value, integer, number):
    assert is_integer(value, 3) == integer
    assert is_number(value, 3) == number


def test_a_number_without_a_minimum_is_finite():
    assert is_number(-1e300)
    assert not is_number(-math.inf)
