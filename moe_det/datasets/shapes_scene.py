"""How many objects a synthetic image holds, of which classes and how large: the statistics, not the pixels.

Object size is ``s = sqrt(area)`` in pixels. Within an image sizes are correlated through a Gaussian copula::

    z_i = sqrt(rho) * g + sqrt(1 - rho) * e_i,    s_i = lo * (hi / lo) ** (Phi(z_i) ** t)

with one scene value ``g`` per image, one standard normal ``e_i`` per object, ``rho = 0.95 * scene_scale``, ``lo`` of
8 px and ``hi`` of 0.85 of the image side. With ``t = 1`` sizes would be log-uniform as drawn; ``t = 0.8`` draws a few
more large ones, because it is they that lose area to smaller objects in front and to the image border. The *visible*
sizes then come out nearly log-uniform.

Near scenes (large ``g``) hold few objects and far scenes many: with ``b = sqrt(rho)`` the expected count is::

    m(g) = clip(n * exp(b ** 2 / 2 - b * g), 1, n_max)

and images are drawn with density proportional to ``phi(g) / m(g)``. Counted over *objects*, ``g`` is then standard
normal again, so the sizes have the same distribution whatever the scene scale. Counted over images its mean is about
``b``, and the term ``b ** 2 / 2`` keeps the mean number of objects per image near ``n``.

With ``scene_kinds`` above 1 an image is of one of several kinds, as photographs of kitchens and of streets are: each
kind has classes of its own, which the other kinds do not show, and a tint of its own in the background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CLASSES = ('circle', 'square', 'triangle', 'star', 'ring', 'cross')

MIN_SIZE_PX = 8.0
MAX_SIZE_SHARE = 0.85
SIZE_TILT = 0.8
MAX_CORRELATION = 0.95  # at scene_scale 1: sizes in an image nearly, not exactly, equal
MEAN_COUNT = 4.8  # objects per image
MAX_EXPECTED_COUNT = 28.0
MAX_OBJECTS = 48  # leaves room below the 100 annotation ids that each image owns
EMPTY_SHARE = 0.03
CROWD_SHARE = 0.03

SCENES = {'all': (-math.inf, math.inf), 'far': (-math.inf, 0.0), 'near': (0.0, math.inf)}  # limits of the scene value
_SCENE_GRID = np.linspace(-4.0, 4.0, 801)


@dataclass(frozen=True)
class Scene:
    """What one image shows, before anything is placed.

    Attributes:
        classes: for each object its index in ``CLASSES``, shape (n,).
        sizes: for each object ``sqrt(area)`` in pixels, shape (n,), unoccluded.
        crowd: whether a crowd of tiny shapes is to be added.
        kind: of the scene, from 0 to ``kinds - 1``.
        kinds: number of kinds of scenes in the data set.
    """

    classes: np.ndarray
    sizes: np.ndarray
    crowd: bool
    kind: int = 0
    kinds: int = 1


def class_names(scene_kinds: int) -> tuple[str, ...]:
    """Names of a data set's classes in the order of their numbers: the shapes of kind 0, then those of kind 1, ..."""
    if scene_kinds == 1:
        return CLASSES
    return tuple(f'{name}_{kind}' for kind in range(scene_kinds) for name in CLASSES)


def expected_count(scene: np.ndarray | float, scene_scale: float) -> np.ndarray:
    """Expected number of objects of an image with scene value ``scene`` (far: negative, near: positive)."""
    slope = math.sqrt(MAX_CORRELATION * scene_scale)
    return np.clip(MEAN_COUNT * np.exp(0.5 * slope**2 - slope * np.asarray(scene)), 1.0, MAX_EXPECTED_COUNT)


def draw_scene(
    rng: np.random.Generator, size: int, scene_scale: float, scene_kinds: int = 1, scenes: str = 'all'
) -> Scene:
    """Draws the content of one image.

    Args:
        rng: the image's own random stream.
        size: side of the image in pixels.
        scene_scale: 0 (sizes independent of the image) to 1 (one scale per image).
        scene_kinds: number of kinds of scenes, all equally frequent.
        scenes: of ``SCENES``: ``all``, or only ``far`` or ``near`` ones, which have one half of all objects each; these
            are small or large as far as ``scene_scale`` makes sizes depend on the image.

    Returns:
        The scene; about 3 % are empty and about 3 % ask for a crowd, for which there is not always room.
    """
    kind = int(rng.integers(scene_kinds)) if scene_kinds > 1 else 0
    special = rng.random()
    if special < EMPTY_SHARE:
        return Scene(np.zeros(0, dtype=np.int64), np.zeros(0), crowd=False, kind=kind, kinds=scene_kinds)

    density = np.exp(-0.5 * _SCENE_GRID**2) / expected_count(_SCENE_GRID, scene_scale)
    lowest, highest = SCENES[scenes]
    cumulative = np.cumsum(density * ((lowest <= _SCENE_GRID) & (highest >= _SCENE_GRID)))
    near = float(np.interp(rng.random(), cumulative / cumulative[-1], _SCENE_GRID))
    # counts of photographs vary more than a Poisson's: its mean is itself drawn, with mean 1 and variance 1/3
    extra = (float(expected_count(near, scene_scale)) - 1.0) * rng.gamma(3.0, 1.0 / 3.0)
    count = min(1 + int(rng.poisson(extra)), MAX_OBJECTS)

    rho = MAX_CORRELATION * scene_scale
    normal = math.sqrt(rho) * near + math.sqrt(1.0 - rho) * rng.standard_normal(count)
    uniform = np.array([0.5 * (1.0 + math.erf(value / math.sqrt(2.0))) for value in normal])
    sizes = MIN_SIZE_PX * (MAX_SIZE_SHARE * size / MIN_SIZE_PX) ** (uniform**SIZE_TILT)
    classes = rng.integers(0, len(CLASSES), count)
    return Scene(classes, sizes, crowd=special > 1.0 - CROWD_SHARE, kind=kind, kinds=scene_kinds)
