"""Simulated images with objects whose sizes, levels and numbers are like COCO's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moe_det.analysis import size_bins

LEVELS = 5

# share of an object's positive RetinaNet anchors by level, P3 to P7, for sides from SIDES[i] pixels on
# (simulated boxes in 640 x 480 images, resized to 1067 x 800)
SIDES = np.array([0, 24, 32, 48, 64, 96, 140, 220])
LEVEL_SHARES = np.array(
    [
        [1, 0, 0, 0, 0],
        [0.93, 0.07, 0, 0, 0],
        [0.38, 0.62, 0, 0, 0],
        [0, 0.94, 0.06, 0, 0],
        [0, 0.5, 0.5, 0, 0],
        [0, 0, 0.9, 0.1, 0],
        [0, 0, 0.26, 0.74, 0],
        [0, 0, 0, 0.55, 0.45],
    ]
)


@dataclass(frozen=True)
class Scenes:
    """Objects of some images.

    Attributes:
        image: (n,) image of each object.
        level: (n,) pyramid level.
        area: (n,) pixels.
        patch: (n,) quarter of the image.
        scale: (N,) scale of each image's scene, standard normal.
    """

    image: np.ndarray
    level: np.ndarray
    area: np.ndarray
    patch: np.ndarray
    scale: np.ndarray

    @cached_property
    def size(self) -> np.ndarray:
        """(n,) COCO's bin."""
        return size_bins(self.area)

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.scale)

    @property
    def counts(self) -> np.ndarray:
        """(N,) objects of each image."""
        return np.bincount(self.image, minlength=self.num_images)

    def only(self, kept: np.ndarray) -> Scenes:
        """The same images with some of their objects."""
        return Scenes(self.image[kept], self.level[kept], self.area[kept], self.patch[kept], self.scale)


# -- numbers of objects ---------------------------------------------------------------------------------------------


def gamma_counts(rng: np.random.Generator, images: int, mean: float = 7.3, evenness: float = 1.0) -> np.ndarray:
    """(N,) objects of each image; small ``evenness`` makes few images hold most objects."""
    rate = mean * rng.gamma(evenness, 1 / evenness, images)
    return 1 + rng.poisson(np.maximum(rate - 1, 0.2))


def heavy_counts(rng: np.random.Generator, images: int) -> np.ndarray:
    """(N,) objects of each image with COCO's mean and long tail: median 4, one image in a hundred has over 45."""
    return 1 + rng.poisson(np.exp(rng.normal(1, 1.2, images)))


# -- scenes ---------------------------------------------------------------------------------------------------------


def coco_like(rng: np.random.Generator, counts: np.ndarray, agreement: float = 0.4) -> Scenes:
    """Scenes with COCO's sizes (about 43, 39 and 18 % small, medium and large).

    Args:
        rng: source of randomness.
        counts: (N,) objects of each image.
        agreement: share of the variance of log side that the images of a scene have in common.
    """
    image = np.repeat(np.arange(len(counts)), counts)
    n = len(image)
    scale = rng.normal(0, 1, len(counts))
    side = np.exp(np.log(45) + np.sqrt(agreement) * scale[image] + np.sqrt(1 - agreement) * rng.normal(size=n))
    side = np.clip(side, 8, 400)
    shares = LEVEL_SHARES[np.searchsorted(SIDES, side, side='right') - 1]
    level = np.minimum((rng.random(n)[:, None] > shares.cumsum(1)).sum(1), LEVELS - 1)
    area = side**2 * rng.uniform(0.45, 1, n)  # a mask fills part of its box
    # the lower half of an image shows what is near, hence large
    patch = rng.integers(2, size=n) + 2 * (rng.random(n) < 0.3 + 0.2 * size_bins(area))
    return Scenes(image, level, area, patch, scale)


def one_level(rng: np.random.Generator, counts: np.ndarray) -> Scenes:
    """All objects at one level; the scene's scale tells 69 % of the variance of their log side."""
    image = np.repeat(np.arange(len(counts)), counts)
    scale = rng.normal(size=len(counts))
    side = np.exp(np.log(50) + 0.6 * (1.5 * scale[image] + rng.normal(size=len(image))))
    return Scenes(image, np.zeros_like(image), side**2, np.zeros_like(image), scale)


def full_scenes(rng: np.random.Generator, images: int) -> Scenes:
    """Every image has four objects at every level, and the scene's scale tells most of their sizes: the worst case."""
    image, level = (np.repeat(values, 4) for values in np.divmod(np.arange(images * LEVELS), LEVELS))
    scale = rng.normal(size=images)
    # a third each is small, medium and large
    area = 32 * 96 * np.exp(2.2 * (scale[image] + 0.7 * rng.normal(size=len(image))))
    return Scenes(image, level, area, np.zeros_like(image), scale)


def scale_decides_level(rng: np.random.Generator, images: int, agreement: float = 0.0) -> Scenes:
    """The scene's scale decides on which levels objects lie; their size inside a level has nothing to do with it.

    Args:
        rng: source of randomness.
        images: N.
        agreement: share of the variance of log side inside a level that the objects of an image have in common, by a
            property that is independent of the scale.
    """
    image = np.repeat(np.arange(images), 1 + rng.poisson(6, images))
    n = len(image)
    scale, other = rng.normal(size=(2, images))
    level = np.clip(np.round(2 + 1.2 * scale[image] + 0.8 * rng.normal(size=n)), 0, LEVELS - 1).astype(np.int64)
    inside = np.sqrt(agreement) * other[image] + np.sqrt(1 - agreement) * rng.normal(size=n)
    return Scenes(image, level, (16 * 2.0**level * np.exp(0.5 * inside)) ** 2, np.zeros_like(image), scale)


def without_size(scenes: Scenes, size: int) -> Scenes:
    """The objects that are not of one of COCO's sizes."""
    return scenes.only(scenes.size != size)
