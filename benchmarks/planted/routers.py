"""Gates whose truth is known: scenes -> the expert of each object, all objects of a routing row having the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moe_det.analysis.information import (
    chance_corrected_v,
    conditional_mutual_information,
    largest_contingency,
    mean_square_contingency,
)
from moe_det.analysis.sizes import relative_sizes

from .scenes import LEVELS, Scenes

EXPERTS, SIZES = 4, 3
Router = Callable[[np.random.Generator, Scenes], np.ndarray]


def of_rows(rows: np.ndarray, scenes: Scenes) -> np.ndarray:
    """(n,) expert of each object from (N, L) of each row."""
    return rows[scenes.image, scenes.level]


def random_router(rng: np.random.Generator, scenes: Scenes) -> np.ndarray:
    """Every row draws its expert."""
    return of_rows(rng.integers(EXPERTS, size=(scenes.num_images, LEVELS)), scenes)


def level_router(rng: np.random.Generator, scenes: Scenes) -> np.ndarray:
    """The level names the expert, one row in five draws it."""
    shape = scenes.num_images, LEVELS
    drawn = rng.integers(EXPERTS, size=shape)
    return of_rows(np.where(rng.random(shape) < 0.2, drawn, np.arange(LEVELS) % EXPERTS), scenes)


def property_router(rng: np.random.Generator, scenes: Scenes) -> np.ndarray:
    """One decision per image, by a property of it such as its brightness."""
    return rng.integers(EXPERTS, size=scenes.num_images)[scenes.image]


def noisy_property_router(rng: np.random.Generator, scenes: Scenes) -> np.ndarray:
    """Rows read the image's property with noise, and each level has thresholds of its own."""
    reading = rng.normal(size=(scenes.num_images, 1)) + 0.7 * rng.normal(size=(scenes.num_images, LEVELS))
    thresholds = np.linspace(-1, 1, EXPERTS - 1) + 0.3 * np.arange(LEVELS)[:, None] - 0.6
    return of_rows((reading[..., None] > thresholds).sum(-1), scenes)


def scale_router(rng: np.random.Generator, scenes: Scenes, per_level: bool) -> np.ndarray:
    """The gate reads the scale of the scene with some noise, once per image or at every level."""
    shape = scenes.num_images, LEVELS if per_level else 1
    reading = scenes.scale[:, None] + 0.3 * rng.normal(size=shape)
    return of_rows(np.broadcast_to(np.digitize(reading, [-0.7, 0, 0.7]), (shape[0], LEVELS)), scenes)


def crowding_rank(rng: np.random.Generator, scenes: Scenes) -> np.ndarray:
    """(N,) 0 for the image with most objects; ties are drawn."""
    return np.argsort(np.argsort(-(scenes.counts + rng.random(scenes.num_images))))


def crowding_router(rng: np.random.Generator, scenes: Scenes, share: float) -> np.ndarray:
    """The images with most objects go to expert 0, the others to expert 1."""
    crowded = max(1, round(share * scenes.num_images))
    return (crowding_rank(rng, scenes) >= crowded).astype(np.int64)[scenes.image]


def crowding_quarters(rng: np.random.Generator, scenes: Scenes) -> np.ndarray:
    """The number of objects in the image names one of four experts, each for as many images."""
    return (crowding_rank(rng, scenes) * EXPERTS // scenes.num_images)[scenes.image]


def patch_router(rng: np.random.Generator, scenes: Scenes) -> np.ndarray:
    """Rows of 2 x 2 patches read their position and the image's property."""
    shape = scenes.num_images, LEVELS, 4
    prior = rng.integers(EXPERTS, size=(scenes.num_images, 1, 1))
    rows = np.where(rng.random(shape) < 0.4, np.broadcast_to(np.arange(4) // 2, shape), prior)
    return rows[scenes.image, scenes.level, scenes.patch]


def soft_router(rng: np.random.Generator, scenes: Scenes) -> np.ndarray:
    """(n, E) random weights over two of the experts."""
    logits = 2 * rng.normal(size=(scenes.num_images, LEVELS, EXPERTS))
    weights = np.exp(np.where(logits >= np.sort(logits)[..., -2:-1], logits, -np.inf))
    return of_rows(weights / weights.sum(-1, keepdims=True), scenes)


# -- gates that do sort by size -------------------------------------------------------------------------------------


def thirds(scenes: Scenes) -> np.ndarray:
    """(n,) third of area among the objects of the level."""
    return relative_sizes(scenes.area, scenes.level).bins


def coco_bins(scenes: Scenes) -> np.ndarray:
    """(n,) COCO's bin."""
    return scenes.size


KINDS = {'COCO': coco_bins, 'relative': thirds}


def row_counts(scenes: Scenes, bins: np.ndarray) -> np.ndarray:
    """(N, L, S) objects of each row by size."""
    counts = np.zeros((scenes.num_images, LEVELS, SIZES))
    np.add.at(counts, (scenes.image, scenes.level, bins), 1)
    return counts


def size_rows(rng: np.random.Generator, scenes: Scenes, kind: str, strength: float) -> np.ndarray:
    """(N, L) experts: with probability ``strength`` the most frequent size of the row's objects, else drawn."""
    counts = row_counts(scenes, KINDS[kind](scenes))
    drawn = rng.integers(EXPERTS, size=counts.shape[:2])
    return np.where(rng.random(drawn.shape) < strength, counts.argmax(2), drawn)


def size_router(rng: np.random.Generator, scenes: Scenes, kind: str, strength: float) -> np.ndarray:
    """Rows follow the most frequent size of their objects, see :func:`size_rows`."""
    return of_rows(size_rows(rng, scenes, kind, strength), scenes)


def planted_truth(counts: np.ndarray, strength: float) -> tuple[float, float]:
    """V and I(E;S | level) of the size router: tables of expected counts over very many images hold no noise.

    Args:
        counts: (N, L, S) of :func:`row_counts`.
        strength: of the router.
    """
    masses = strength * np.eye(EXPERTS)[counts.argmax(2)] + (1 - strength) / EXPERTS
    tables = np.einsum('nle,nls->les', masses, counts)
    v = chance_corrected_v(float(mean_square_contingency(tables)), 0.0, largest_contingency(tables))
    return v, float(conditional_mutual_information(tables))


def strength_for(counts: np.ndarray, v: float) -> float:
    """The strength of the size router whose V given the level is ``v``, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if planted_truth(counts, middle)[0] < v else (low, middle)
    return low
