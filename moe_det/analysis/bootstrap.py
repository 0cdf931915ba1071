"""Intervals from resampled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm

from .information import conditional_mutual_information
from .rows import ObjectRows

_CHUNK = 2_000_000  # resampled images per chunk

View = Callable[[np.ndarray], np.ndarray]


def bootstrap_cmi(
    rows: ObjectRows, resamples: int, rng: np.random.Generator, views: Sequence[View] = (lambda tables: tables,)
) -> list[np.ndarray]:
    """Plug-in I(E;S | level) of resampled data sets, in bits.

    Images, or groups of images, are drawn with replacement, with all their objects: objects of one image are not
    independent, nor are images of one group.

    Args:
        rows: the observed rows.
        resamples: how many data sets to draw.
        rng: source of randomness.
        views: each makes (..., L, E, S') tables out of (..., L, E, S) ones.

    Returns:
        Per view (resamples,) values; see :func:`score_interval` for their bias and spread.
    """
    of_image = rows.image_tables()
    shape = of_image.shape[1:]
    units = rows.num_groups
    tables = np.zeros((units, int(np.prod(shape))))
    np.add.at(tables, rows.groups, of_image.reshape(len(of_image), -1))
    values = [np.empty(resamples) for _ in views]
    step = max(1, _CHUNK // units)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(units, size=(size, units)) + np.arange(size)[:, None] * units
        times = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
        resampled = (times.astype(float) @ tables).reshape(size, *shape)
        for found, view in zip(values, views, strict=True):
            found[start : start + size] = conditional_mutual_information(view(resampled))
    return values


def score_interval(
    values: np.ndarray, estimate: float, null: tuple[float, float], confidence: float = 0.95
) -> tuple[float, float]:
    """The true values that lie within the spread which the estimate would have if they were true.

    Resampling adds noise to a table that already holds noise. Plug-in information is therefore biased once more in
    every resample, and spreads more than from one data set to the next: to terms of second order, information of a
    table with noise has the variance of the null distribution where the truth is zero, and more in proportion to the
    truth. Resamples vary about a table whose information is the observed one, noise included, which tells the
    proportion. So the variance is known for every truth, as in Wilson's interval of a share. Percentiles of the
    resamples would be too wide, near zero by a factor of about 1.7.

    The interval contains the estimate and, like it, may reach below zero.

    Args:
        values: bootstrap values.
        estimate: the bias-corrected value of the data.
        null: mean and variance under permutation of the value that is not corrected.
        confidence: share of repetitions in which the interval should hold the true value.
    """
    mean, variance = null
    spread = float(np.var(values))
    variance = min(variance, spread)  # information near its ceiling hardly varies
    observed = mean + max(estimate, 0.0)
    growth = (spread - variance) / observed if observed > 0 else 0.0
    z = float(norm.ppf((1 + confidence) / 2))
    width = z * np.sqrt(variance)
    # bounds are the truths t of which |estimate - t| = z sqrt(variance + growth t); below zero the variance is constant
    half = z * z * growth / 2
    inside = half * half + 2 * half * estimate + width * width
    root = np.sqrt(max(inside, 0.0))
    low = estimate - width if estimate <= width else estimate + half - root
    high = estimate + half + root
    if inside < 0 or high < 0:
        high = estimate + width
    return float(low), float(high)
