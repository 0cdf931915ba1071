"""The shape classes as signed distance fields, rasterised into stamps that can be put anywhere on an image.

Every class is scaled to the same *area*, not to the same width: size then says nothing about the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RING_HOLE = 0.55
CROSS_ARM = 0.34
STAR_INNER = 0.5
TILT = 0.08  # radians, standard deviation: things in photographs mostly stand upright

# area of each unit shape and its farthest point; the unit is the circumradius (half the width for square and cross)
UNIT_AREA = {
    'circle': math.pi,
    'square': 4.0,
    'triangle': 0.75 * math.sqrt(3.0),
    'star': 5.0 * STAR_INNER * math.sin(math.pi / 5.0),
    'ring': math.pi * (1.0 - RING_HOLE**2),
    'cross': 8.0 * CROSS_ARM - 4.0 * CROSS_ARM**2,
}
UNIT_REACH = {
    'circle': 1.0,
    'square': math.sqrt(2.0),
    'triangle': 1.0,
    'star': 1.0,
    'ring': 1.0,
    'cross': math.hypot(1.0, CROSS_ARM),
}


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v) - 1.0


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 1.0


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(0.5 * math.sqrt(3.0) * np.abs(u) - 0.5 * v, v) - 0.5


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    radius = np.sqrt(u * u + v * v)
    return np.maximum(radius - 1.0, RING_HOLE - radius)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(x, y) - 1.0, np.minimum(x, y) - CROSS_ARM)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # a five-pointed star is ten mirror images of one wedge, so three reflections bring every pixel into the wedge
    # between the top point (0, 1) and the notch next to it, where the outline is one straight line
    cos36, sin36 = math.cos(math.pi / 5.0), math.sin(math.pi / 5.0)
    x, y = np.abs(u), v
    for nx in (cos36, -cos36):
        beyond = 2.0 * np.maximum(x * nx - y * sin36, 0.0)
        x, y = x - beyond * nx, y + beyond * sin36
    x = np.abs(x)
    dx, dy = STAR_INNER * sin36, STAR_INNER * cos36 - 1.0  # from the point to the notch
    return ((y - 1.0) * dx - x * dy) / math.hypot(dx, dy)


FIELDS = {'circle': _circle, 'square': _square, 'triangle': _triangle, 'star': _star, 'ring': _ring, 'cross': _cross}


@dataclass(frozen=True)
class Stamp:
    """One rasterised shape in a window just around it.

    Attributes:
        distance: signed distance to the outline in pixels, negative inside, shape (h, w), float32.
        u: first coordinate of the shape's own axes in unit radii, shape (h, w).
        v: second coordinate, shape (h, w).
        size: the requested ``sqrt(area)`` in pixels.
    """

    distance: np.ndarray
    u: np.ndarray
    v: np.ndarray
    size: float

    @property
    def mask(self) -> np.ndarray:
        """Pixels whose centre lies inside the outline, shape (h, w), bool."""
        return self.distance < 0.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.distance.shape


def make_stamp(rng: np.random.Generator, kind: str, size: float) -> Stamp:
    """Rasterises a shape of area ``size ** 2`` nearly upright, with mild stretch and sub-pixel position.

    Args:
        rng: source of the tilt, stretch and position.
        kind: one of the class names.
        size: square root of the area in pixels.
    """
    stretch = math.exp(rng.uniform(-0.06, 0.06))
    angle = rng.normal(0.0, TILT)
    radius = size / math.sqrt(UNIT_AREA[kind])
    half = math.ceil(radius * UNIT_REACH[kind] * max(stretch, 1.0 / stretch)) + 2
    axis = np.arange(-half, half + 1, dtype=np.float32)
    x = axis[None, :] - np.float32(rng.uniform(-0.5, 0.5))
    y = axis[:, None] - np.float32(rng.uniform(-0.5, 0.5))
    cos, sin = math.cos(angle) / radius, math.sin(angle) / radius
    u = (x * np.float32(cos) + y * np.float32(sin)) * np.float32(1.0 / stretch)
    v = (y * np.float32(cos) - x * np.float32(sin)) * np.float32(stretch)
    distance = FIELDS[kind](u, v) * np.float32(radius)

    near = distance < 1.0  # one pixel around the outline takes part in anti-aliasing
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Stamp(distance[window], u[window], v[window], size)
