"""Intervals of differences between trainings, over the images that they are tested on and over seeds.

Letters: S seeds, B resamples of the images, the same for all trainings on a folder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from common.intervals import LEVEL, Difference, student

UNIT = 1e4  # resampled values are recorded as integers of this part
UNDEFINED = -1


def packed(values: np.ndarray) -> str:
    """Resampled average precisions as text."""
    return ' '.join(str(round(value * UNIT)) if np.isfinite(value) else str(UNDEFINED) for value in values)


def unpacked(text: str) -> np.ndarray:
    """(B,) of :func:`packed`, NaN where a resample has no object that decides."""
    values = np.array(text.split(), dtype=float)
    return np.where(values == UNDEFINED, np.nan, values / UNIT)


def two_way(points: Sequence[float], resampled: np.ndarray, images: float, level: float = LEVEL) -> Difference:
    """Interval of a mean over seeds when the images and the seeds had been others.

    What a bootstrap that draws images and seeds, each with replacement, gives in the limit of many draws, with the
    S / (S - 1) that a bootstrap of few values lacks: the variance over resamples of the mean over seeds, plus the mean
    over resamples of the squared standard error over seeds. Student's distribution with Satterthwaite's degrees of
    freedom takes account of how few seeds there are. With one seed it is an interval over images alone.

    Args:
        points: (S,) a value per seed, on the images as they are.
        resampled: (S, B) the same on resampled images, NaN where it is not defined.
        images: degrees of freedom of the part that images have.
        level: chance that the interval holds the true mean.
    """
    seeds, mean = len(points), float(np.mean(points))
    known = resampled[:, np.isfinite(resampled).all(0)]
    if known.shape[1] < 2:
        return Difference(100 * mean, seeds=seeds)
    parts = [(float(known.mean(0).var(ddof=1)), images)]
    if seeds > 1:
        parts.append((float(known.var(0, ddof=1).mean()) / seeds, seeds - 1))
    return student(100 * mean, [(100**2 * part, freedom) for part, freedom in parts], level, seeds)


def against(row: dict, other: dict, measure: str) -> Difference | None:
    """A row of the record minus another one of the same folder, over the seeds that both have; None without any.

    Args:
        row: with ``seeds``, each with the measure, ``resampled`` and ``freedom``.
        other: likewise.
        measure: of ``common.page.MEASURES``.
    """
    theirs = {run['seed']: run for run in other['seeds']}
    pairs = [(run, theirs[run['seed']]) for run in row['seeds'] if run['seed'] in theirs]
    pairs = [(a, b) for a, b in pairs if a[measure] is not None and b[measure] is not None]
    if not pairs:
        return None
    points = [a[measure] - b[measure] for a, b in pairs]
    resampled = np.array([unpacked(a['resampled'][measure]) - unpacked(b['resampled'][measure]) for a, b in pairs])
    return two_way(points, resampled, pairs[0][0]['freedom'][measure])
