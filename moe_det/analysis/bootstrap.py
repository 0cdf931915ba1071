"""Intervals from resampled images."""

from __future__ import annotations

import numpy as np

from .information import conditional_mutual_information
from .rows import ObjectRows

_CHUNK = 2_000_000  # resampled images per chunk


def bootstrap_cmi(rows: ObjectRows, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Plug-in I(E;S | level) of resampled data sets, in bits.

    Images are drawn with replacement, with all their objects: objects of one image are not independent.

    Returns:
        (resamples,) values; see :func:`centred_interval` for their bias.
    """
    tables = rows.image_tables()
    num_images, shape = len(tables), tables.shape[1:]
    tables = tables.reshape(num_images, -1)
    values = np.empty(resamples)
    step = max(1, _CHUNK // num_images)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(num_images, size=(size, num_images)) + np.arange(size)[:, None] * num_images
        times = np.bincount(drawn.ravel(), minlength=size * num_images).reshape(size, num_images)
        resampled = (times.astype(float) @ tables).reshape(size, *shape)
        values[start : start + size] = conditional_mutual_information(resampled)
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
