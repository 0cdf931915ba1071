"""Differences between groups of runs, with Student's intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, variance

from scipy.stats import t

from .page import defined

LEVEL = 0.95  # chance that an interval holds the true difference


@dataclass(frozen=True)
class Difference:
    """A mean difference.

    Attributes:
        mean: the difference.
        low: lower end of its interval; None where the data do not tell.
        high: upper end.
        error: its standard error; None where it is not known.
        seeds: pairs of runs, where runs are paired.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    error: float | None = None
    seeds: int = 0

    @property
    def apart(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and (self.low > 0 or self.high < 0)

    @property
    def above(self) -> bool:
        """Whether it is more than two standard errors above zero, of three pairs or more."""
        return self.seeds >= 3 and self.mean > 2 * self.error


def student(mean: float, variances: Sequence[tuple[float, float]], level: float, seeds: int = 0) -> Difference:
    """Interval around a mean whose variance is a sum of estimates, with Satterthwaite's degrees of freedom.

    Args:
        mean: the estimate.
        variances: parts of its variance, each with its degrees of freedom.
        level: chance that the interval holds the truth.
        seeds: pairs of runs.
    """
    total = sum(part for part, _ in variances)
    half = 0.0
    if total:
        freedom = total**2 / sum(part**2 / of_part for part, of_part in variances)
        half = float(t.ppf((1 + level) / 2, freedom)) * sqrt(total)
    return Difference(mean, mean - half, mean + half, sqrt(total), seeds)


def welch(first: Sequence[float | None], second: Sequence[float | None], level: float = LEVEL) -> Difference | None:
    """Welch's interval for the difference of two means; None for fewer than two values on either side.

    Args:
        first: a value per seed; None where a seed has none.
        second: likewise, of other runs.
        level: chance that the interval holds the true difference.
    """
    groups = [[value for value in values if value is not None] for values in (first, second)]
    if min(map(len, groups)) < 2:
        return None
    variances = [(variance(values) / len(values), len(values) - 1) for values in groups]
    return student(fmean(groups[0]) - fmean(groups[1]), variances, level)


def paired(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Difference | None:
    """Mean of ``first - second`` with Student's interval, which one pair does not have; None without pairs.

    Args:
        first: a value per seed.
        second: of the same seeds, in the same order.
        level: chance that the interval holds the true difference.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if len(differences) < 2:
        return Difference(differences[0], seeds=1) if differences else None
    pairs = len(differences)
    return student(fmean(differences), [(variance(differences) / pairs, pairs - 1)], level, pairs)


def against(row: dict, other: dict, measure: str) -> Difference | None:
    """A row of a record against another one, in points, over the seeds that both have; None where none is defined."""
    of_other = {run['seed']: run.get(measure) for run in other['seeds']}
    both = [
        (100 * run[measure], 100 * of_other[run['seed']])
        for run in row['seeds']
        if defined(run.get(measure)) and defined(of_other.get(run['seed']))
    ]
    return paired([a for a, _ in both], [b for _, b in both])
