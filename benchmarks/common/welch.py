"""The difference between two groups of runs whose seeds are no pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, variance

from scipy.stats import t


@dataclass(frozen=True)
class Difference:
    """Mean of some seeds minus mean of others, with Welch's interval.

    Attributes:
        mean: the difference.
        low: lower end of the interval.
        high: upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def apart(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def welch(first: Sequence[float | None], second: Sequence[float | None], level: float = 0.95) -> Difference | None:
    """Welch's interval for the difference of two means; None for fewer than two values on either side.

    Args:
        first: a value per seed; None where a seed has none.
        second: likewise, of other runs.
        level: chance that the interval holds the true difference.
    """
    groups = [[value for value in values if value is not None] for values in (first, second)]
    if min(map(len, groups)) < 2:
        return None
    mean = fmean(groups[0]) - fmean(groups[1])
    squares = [variance(values) / len(values) for values in groups]
    error = sqrt(sum(squares))
    if error == 0:
        return Difference(mean, mean, mean)
    freedom = sum(squares) ** 2 / sum(s**2 / (len(v) - 1) for s, v in zip(squares, groups, strict=True))
    half = float(t.ppf((1 + level) / 2, freedom)) * error
    return Difference(mean, mean - half, mean + half)
