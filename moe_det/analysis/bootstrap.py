"""Intervals from resampled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

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
        Per view (resamples,) values; see :func:`centred_interval` for their bias.
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


def centred_interval(values: np.ndarray, estimate: float, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values, moved so that their mean is the estimate.

    Resampling adds noise to a table that already holds noise, so plug-in information is biased once more in every
    resample; a plain percentile interval would exclude zero for a router that knows nothing. Near zero the interval is
    too wide rather than too narrow, and like the estimate it may reach below zero.

    Args:
        values: bootstrap values.
        estimate: the bias-corrected value of the data.
        confidence: share of repetitions in which the interval should hold the true value.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) - values.mean() + estimate
    return float(low), float(high)
