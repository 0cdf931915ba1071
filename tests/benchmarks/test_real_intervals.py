"""Intervals over images and seeds of benchmarks/real_images.py."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from common.page import MEASURES
from real.intervals import against, packed, two_way, unpacked


def test_values_are_kept_as_text():
    values = np.array([0.12344, 0.5, np.nan, 0.0])
    np.testing.assert_array_equal(unpacked(packed(values)), [0.1234, 0.5, np.nan, 0.0])


def test_the_variance_is_that_of_a_bootstrap_of_images_and_seeds():
    rng = np.random.default_rng(0)
    seeds, resamples, draws = 4, 400, 400
    resampled = (
        rng.normal(size=(1, resamples)) + rng.normal(size=(seeds, 1)) + 0.5 * rng.normal(size=(seeds, resamples))
    )
    found = two_way(resampled.mean(1), resampled, images=1e9)
    # naive: for every resample draw seeds with replacement, with the correction of few seeds
    means = resampled.mean(0)
    drawn = rng.integers(seeds, size=(draws, seeds))
    naive = means + sqrt(seeds / (seeds - 1)) * (resampled[drawn].mean(1) - means)
    parts = resampled.mean(0).var(ddof=1), resampled.var(0, ddof=1).mean() / seeds
    freedom = sum(parts) ** 2 / (parts[1] ** 2 / (seeds - 1))
    from scipy.stats import t

    half = 100 * t.ppf(0.975, freedom) * naive.std()
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_one_seed_has_an_interval_over_images_alone():
    resampled = np.array([[0.01, 0.03, 0.02, 0.02]])
    found = two_way([0.02], resampled, images=3)
    assert found.seeds == 1 and found.mean == pytest.approx(2)
    assert found.high - found.mean == pytest.approx(3.182446 * 100 * resampled.std(ddof=1))  # Student's t, 3 degrees
    assert not found.apart


def test_three_equal_seeds_on_equal_images_leave_no_doubt():
    found = two_way([0.01] * 3, np.full((3, 5), 0.01), images=20)
    assert (found.low, found.high) == pytest.approx((1, 1)) and found.apart


def test_the_interval_holds_the_truth_in_95_of_100_sets():
    """Differences that have a part of the image, one of the seed and one of both, with three seeds."""
    rng = np.random.default_rng(1)
    seeds, images, sets = 3, 60, 600
    held = 0
    for _ in range(sets):
        values = rng.normal(size=(1, images)) + 0.15 * rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, images))
        drawn = rng.integers(images, size=(100, images))
        found = two_way(values.mean(1), values[:, drawn].mean(-1), images=images - 1)
        held += found.low <= 0 <= found.high
    assert 0.93 <= held / sets <= 0.995


def run(seed: int, value: float | None, resampled: list[float]) -> dict:
    text = packed(np.array(resampled))
    freedom = dict.fromkeys(MEASURES, 9.0)
    return {
        'seed': seed,
        **dict.fromkeys(MEASURES, value),
        'resampled': dict.fromkeys(MEASURES, text),
        'freedom': freedom,
    }


def test_settings_are_compared_seed_by_seed_and_resample_by_resample():
    control = {'seeds': [run(0, 0.4, [0.4, 0.5, 0.3]), run(1, 0.5, [0.5, 0.6, 0.4])]}
    mixture = {
        'seeds': [run(1, 0.52, [0.52, 0.62, 0.42]), run(0, 0.42, [0.42, 0.52, 0.32]), run(2, 0.9, [0.9, 0.9, 0.9])]
    }
    found = against(mixture, control, 'AP')
    assert found.seeds == 2 and found.mean == pytest.approx(2)
    # images move both alike, so that nothing is left of them
    assert (found.low, found.high) == pytest.approx((2, 2), abs=1e-6)
    assert against({'seeds': [run(0, None, [0.1] * 3)]}, control, 'AP') is None
