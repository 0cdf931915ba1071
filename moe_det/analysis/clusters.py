"""Spherical k-means: clusters of vectors by direction.

Shape letters: N vectors, D values, C clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ITERATIONS, RESTARTS = 25, 3  # of arXiv 2509.10513


@dataclass(frozen=True)
class Clusters:
    """Clusters of vectors.

    Attributes:
        centroids: (C, D) of length 1.
        members: (N,) cluster of each vector.
        cosine: mean cosine of a vector and its centroid, in [-1, 1].
    """

    centroids: np.ndarray
    members: np.ndarray
    cosine: float

    @property
    def sizes(self) -> list[int]:
        """Vectors of each cluster."""
        return np.bincount(self.members, minlength=len(self.centroids)).tolist()


def spherical_k_means(
    vectors: np.ndarray, clusters: int, seed: int = 0, iterations: int = ITERATIONS, restarts: int = RESTARTS
) -> Clusters:
    """Divides vectors into clusters so that the sum of their cosines with their centroids is large.

    A centroid is the normalised sum of its members (Dhillon and Modha 2001). arXiv 2509.10513 takes 25 iterations and
    the best of 3 restarts; the start, by k-means++ with 1 - cosine as the distance, is our own choice. It ends earlier
    where nothing changes. A cluster that loses all members gets the vector that fits its own centroid least.

    Args:
        vectors: (N, D), none of them zero.
        clusters: C <= N.
        seed: of the starts.
        iterations: most of them, >= 1.
        restarts: starts, of which the best result is taken.

    Raises:
        ValueError: fewer vectors than clusters, or a vector of length 0.
    """
    if len(vectors) < clusters:
        raise ValueError(f'{len(vectors)} vectors cannot be divided into {clusters} clusters')
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise ValueError('a vector of length 0 has no direction')
    unit, generator = vectors / lengths, np.random.default_rng(seed)
    found = [_from_one_start(unit, _start(unit, clusters, generator), iterations) for _ in range(restarts)]
    return max(found, key=lambda result: result.cosine)


def _start(unit: np.ndarray, clusters: int, generator: np.random.Generator) -> np.ndarray:
    """(C, D) different vectors, the next one the likelier the farther it lies from those before."""
    chosen = [int(generator.integers(len(unit)))]
    distance = 1 - unit @ unit[chosen[0]]
    for _ in range(clusters - 1):
        chances = np.clip(distance, 0, None)
        chances[chosen] = 0
        if chances.sum() <= 0:  # equal vectors alone are left
            chances = np.ones(len(unit))
            chances[chosen] = 0
        chosen.append(int(generator.choice(len(unit), p=chances / chances.sum())))
        distance = np.minimum(distance, 1 - unit @ unit[chosen[-1]])
    return unit[chosen]


def _from_one_start(unit: np.ndarray, centroids: np.ndarray, iterations: int) -> Clusters:
    members = (unit @ centroids.T).argmax(1)
    for _ in range(iterations):
        centroids = _centroids(unit, members, centroids)
        before, members = members, (unit @ centroids.T).argmax(1)
        if (members == before).all():
            break
    return Clusters(centroids, members, float((unit * centroids[members]).sum(1).mean()))


def _centroids(unit: np.ndarray, members: np.ndarray, before: np.ndarray) -> np.ndarray:
    sums = np.zeros_like(before)
    np.add.at(sums, members, unit)
    lengths = np.linalg.norm(sums, axis=1)
    fit = (unit * before[members]).sum(1)
    for empty in np.flatnonzero(lengths < 1e-12):
        farthest = int(fit.argmin())
        sums[empty], lengths[empty], fit[farthest] = unit[farthest], 1.0, np.inf
    return sums / lengths[:, None]
