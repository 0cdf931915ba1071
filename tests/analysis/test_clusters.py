"""Spherical k-means on planted directions, and against all divisions of a few vectors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moe_det.analysis.clusters import spherical_k_means


def test_planted_directions_are_found_whatever_the_lengths():
    generator = np.random.default_rng(0)
    planted = np.repeat(np.arange(3), 20)
    vectors = np.eye(5)[planted] + 0.1 * generator.standard_normal((60, 5))
    vectors *= np.exp(generator.uniform(-3, 3, (60, 1)))
    found = spherical_k_means(vectors, 3)
    assert len(set(zip(found.members.tolist(), planted.tolist(), strict=True))) == 3
    assert sorted(found.sizes) == [20, 20, 20]
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1)


def test_no_division_of_a_few_vectors_is_better():
    vectors = np.random.default_rng(1).standard_normal((7, 2))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    best = max(  # the sum of cosines with the best centroid of a set is the length of its sum
        sum(np.linalg.norm(unit[np.array(division) == c].sum(0)) for c in (0, 1))
        for division in itertools.product((0, 1), repeat=7)
    )
    assert spherical_k_means(vectors, 2, restarts=20).cosine * 7 == pytest.approx(best)


def test_equal_vectors_and_as_many_clusters_as_vectors_are_no_error():
    assert spherical_k_means(np.ones((4, 3)), 2).cosine == pytest.approx(1)
    assert sorted(spherical_k_means(np.eye(3), 3).sizes) == [1, 1, 1]


def test_vectors_that_cannot_be_clustered_are_refused():
    with pytest.raises(ValueError, match='2 vectors cannot be divided into 3 clusters'):
        spherical_k_means(np.eye(2), 3)
    with pytest.raises(ValueError, match='length 0 has no direction'):
        spherical_k_means(np.zeros((3, 2)), 2)
