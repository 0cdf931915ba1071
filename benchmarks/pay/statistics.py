"""Differences between runs that started from the same detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from common.page import defined
from scipy.stats import t


@dataclass(frozen=True)
class Paired:
    """Mean difference of pairs of runs, a pair per seed.

    Attributes:
        mean: the mean difference.
        error: its standard error; None with one pair.
        low: lower end of Student's 95 % interval; None with one pair.
        high: upper end.
        pairs: number of pairs.
    """

    mean: float
    error: float | None
    low: float | None
    high: float | None
    pairs: int

    @property
    def above(self) -> bool:
        """Whether it is more than two standard errors above zero, of three pairs or more."""
        return self.pairs >= 3 and self.mean > 2 * self.error


def paired(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Paired | None:
    """Mean of ``first - second`` with Student's interval; None without pairs.

    Args:
        first: a value per seed.
        second: of the same seeds, in the same order.
        level: chance that the interval holds the true difference.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if not differences:
        return None
    mean, pairs = fmean(differences), len(differences)
    if pairs == 1:
        return Paired(mean, None, None, None, 1)
    error = stdev(differences) / sqrt(pairs)
    half = float(t.ppf((1 + level) / 2, pairs - 1)) * error
    return Paired(mean, error, mean - half, mean + half, pairs)


def against(row: dict, other: dict, measure: str) -> Paired | None:
    """A row of the record against another one, in points, over the seeds that both have; None where none is defined."""
    of_other = {run['seed']: run.get(measure) for run in other['seeds']}
    both = [
        (100 * run[measure], 100 * of_other[run['seed']])
        for run in row['seeds']
        if defined(run.get(measure)) and defined(of_other.get(run['seed']))
    ]
    return paired([a for a, _ in both], [b for _, b in both])
