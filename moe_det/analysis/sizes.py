"""Sizes of objects: COCO's bins, and size relative to the other objects of the same level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..checks import is_integer

SIZE_NAMES = ('small', 'medium', 'large')
QUANTILES = 3
RELATIVE_NAMES = ('lower third', 'middle third', 'upper third')


def size_bins(areas: ArrayLike, limits: ArrayLike = (32**2, 96**2)) -> np.ndarray:
    """Size bin of each object from its area in pixels: 0 small, 1 medium, 2 large.

    COCO's ranges include both ends, so that an area of exactly 1024 counts as small and as medium. A table needs one
    bin per object: here an area on a limit belongs to the smaller bin.

    Args:
        areas: (n,) areas, the annotation's ``area`` (of the mask, where there is one) in pixels of the original image.
        limits: ascending upper limits of all bins but the last.

    Returns:
        (n,) integers 0..len(limits).

    Raises:
        ValueError: an area is negative or not finite, or the limits do not ascend.
    """
    limits = np.asarray(limits, dtype=float)
    if (np.diff(limits) <= 0).any():
        raise ValueError(f'limits must ascend, got {limits.tolist()}')
    return np.searchsorted(limits, checked_areas(areas), side='left')


def checked_areas(areas: ArrayLike, n: int | None = None) -> np.ndarray:
    """Areas as an array.

    Raises:
        ValueError: there are not ``n`` of them, or one is negative or not finite.
    """
    areas = np.asarray(areas, dtype=float)
    if n is not None and areas.shape != (n,):
        raise ValueError(f'areas must have one entry per object: expected shape ({n},), got {areas.shape}')
    wrong = ~(np.isfinite(areas) & (areas >= 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f'areas[{at}] is {areas.flat[at]}, expected a finite area >= 0')
    return areas


@dataclass(frozen=True)
class RelativeSizes:
    """Sizes of objects among the objects of their level.

    Attributes:
        bins: (n,) quantile bin of each object, 0..quantiles-1.
        levels: (L,) the levels, ascending.
        limits: (L, quantiles - 1) largest area of each bin but the last, at each level; 0 where the bins up to it hold
            no object.
    """

    bins: np.ndarray
    levels: np.ndarray
    limits: np.ndarray


def relative_sizes(
    areas: ArrayLike, levels: ArrayLike, weights: ArrayLike | None = None, quantiles: int = QUANTILES
) -> RelativeSizes:
    """Cuts the objects of each level into quantiles of area: what the level leaves open about size.

    Objects of one area share a bin, that of the middle of their ranks. The logarithm of the area would give the same
    bins.

    Args:
        areas: (n,) areas in pixels.
        levels: (n,) level of each object.
        weights: (n,) positive weight of each entry; None weighs all 1.
        quantiles: number of bins, at least 2.

    Raises:
        ValueError: arrays of different lengths, an area that is none, or fewer than 2 quantiles.
    """
    if not is_integer(quantiles, 2):
        raise ValueError(f'quantiles={quantiles!r}: expected an integer >= 2')
    levels = np.asarray(levels)
    areas = checked_areas(areas, len(levels))
    weights = np.ones(len(areas)) if weights is None else np.asarray(weights, dtype=float)
    names = np.unique(levels)
    bins, limits = np.zeros(len(areas), dtype=np.int64), np.zeros((len(names), quantiles - 1))
    for row, level in enumerate(names):
        at = np.flatnonzero(levels == level)
        distinct, inverse = np.unique(areas[at], return_inverse=True)
        weight = np.bincount(inverse, weights[at], len(distinct))
        middle = (np.cumsum(weight) - weight / 2) / weight.sum()
        bin_of = np.minimum((middle * quantiles).astype(np.int64), quantiles - 1)
        bins[at] = bin_of[inverse]
        below = np.searchsorted(bin_of, np.arange(quantiles - 1), side='right')
        limits[row] = np.where(below > 0, distinct[np.maximum(below - 1, 0)], 0.0)
    return RelativeSizes(bins, names, limits)


def size_names(num_sizes: int) -> list[str]:
    """Names of the size bins: COCO's for three."""
    return list(SIZE_NAMES) if num_sizes == 3 else [f'size {index}' for index in range(num_sizes)]
