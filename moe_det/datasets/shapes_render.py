"""Places and paints the objects of a scene and keeps account of what stays visible of each.

Objects are painted roughly from large to small, later ones over earlier ones. A position is only taken if every object
already there, crowds included, keeps enough visible pixels; so no object of a class is ever left without annotation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from .shapes_background import hsv_to_rgb, render_background, to_image
from .shapes_geometry import Stamp, make_stamp
from .shapes_scene import CLASSES, Scene

MIN_VISIBLE_PX = 20
HUE_SPREAD = 0.01  # of a full turn; the hues of two classes lie 1/6 apart, with K kinds of scenes 1/(6 K)
TINT_SATURATION, TINT_VALUE = 0.25, 0.4  # of the background, where scenes are of several kinds
# visible share that every object must keep, try after try; most objects go where they hide nothing, or nowhere
_APART = (1.0,) * 32
_OVERLAPPING = (1.0,) * 8 + (0.9,) * 12 + (0.75,) * 12
_OVERLAP_CHANCE = 0.15
_CUT_CHANCE = 0.04  # of objects that reach over the image border


@dataclass(frozen=True)
class Instance:
    """One annotated region.

    Attributes:
        category: number of the class, as :func:`~moe_det.datasets.shapes_scene.class_names` counts.
        mask: visible pixels, shape (size, size), bool.
        crowd: whether it is a region of many shapes (``iscrowd``).
    """

    category: int
    mask: np.ndarray
    crowd: bool


class Canvas:
    """An image under construction with, for every pixel, the object it shows.

    Args:
        image: the background, shape (3, size, size), float32 in 0..255; painted on in place.
        kinds: number of kinds of scenes, among which the hues are shared out.
    """

    def __init__(self, image: np.ndarray, kinds: int = 1) -> None:
        self.image = image
        self.kinds = kinds
        self.size = image.shape[-1]
        self.owner = np.zeros(image.shape[1:], dtype=np.int16)  # 0: background
        self._full = [0]
        self._visible: np.ndarray = np.zeros(1, dtype=np.int64)
        self._kinds: list[tuple[int, bool]] = []

    def find_place(self, rng: np.random.Generator, mask: np.ndarray) -> tuple[int, int] | None:
        """Looks for a top-left corner where a mask hides no object too much.

        Args:
            rng: source of the positions tried.
            mask: the pixels to be covered, shape (h, w), bool; may be larger than the image.

        Returns:
            (top, left), possibly negative, or None if no tried position will do.
        """
        area = int(mask.sum())
        for share in _OVERLAPPING if rng.random() < _OVERLAP_CHANCE else _APART:
            cut = rng.random() < _CUT_CHANCE
            top, left = (self._corner(rng, extent, cut) for extent in mask.shape)
            window, part = self._clip(top, left, mask.shape)
            covered = mask[part]
            inside = int(covered.sum())
            if inside < max(MIN_VISIBLE_PX, 0.6 * area):
                continue
            lost = np.bincount(self.owner[window][covered], minlength=len(self._full))
            needed = np.maximum(share * np.array(self._full), MIN_VISIBLE_PX)
            if np.all((self._visible - lost >= needed)[1:]):
                return top, left
        return None

    def claim(self, mask: np.ndarray, top: int, left: int, category: int, crowd: bool) -> None:
        """Gives the pixels of ``mask`` at (top, left) to a new object."""
        window, part = self._clip(top, left, mask.shape)
        covered = mask[part]
        owner = self.owner[window]
        self._visible = self._visible - np.bincount(owner[covered], minlength=len(self._full))
        owner[covered] = len(self._full)
        self._full.append(int(covered.sum()))
        self._visible = np.append(self._visible, self._full[-1])
        self._kinds.append((category, crowd))

    def paint(self, rng: np.random.Generator, stamp: Stamp, top: int, left: int, base: np.ndarray) -> None:
        """Paints a stamp at (top, left) with a texture around the colour ``base`` and sometimes an outline."""
        (rows, columns), part = self._clip(top, left, stamp.shape)
        if not stamp.distance[part].size:
            return
        distance, target = stamp.distance[part], self.image[:, rows, columns]
        colour = _fill(rng, stamp, part, base)
        if stamp.size >= 14.0 and rng.random() < 0.1:
            width = max(1.0, stamp.size * rng.uniform(0.03, 0.08))
            inner = np.clip(np.float32(0.5 - width) - distance, 0.0, 1.0)
            border = base * np.float32(0.45) if rng.random() < 0.7 else base * np.float32(0.5) + np.float32(127.5)
            colour = border + inner * (colour - border)
        cover = np.clip(np.float32(0.5) - distance, 0.0, 1.0)
        target += cover * (colour - target)

    def contrasting_colour(
        self, rng: np.random.Generator, category: int, top: int, left: int, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Draws a colour of the class that stands out from what the window shows, shape (3, 1, 1), in 0..255."""
        (rows, columns), _ = self._clip(top - 2, left - 2, (shape[0] + 4, shape[1] + 4))
        seen = self.image[:, rows, columns]
        seen = seen[:, :: max(1, seen.shape[1] // 7), :: max(1, seen.shape[2] // 7)].reshape(1, 3, -1)
        colours = np.stack([_class_colour(rng, category, self.kinds) for _ in range(10)])
        apart = np.sort(np.sqrt(((seen - colours[..., 0]) ** 2).sum(axis=1)), axis=1)[:, seen.shape[2] // 5]
        good = np.flatnonzero(apart > 110.0)
        return colours[good[0] if len(good) else int(np.argmax(apart))]

    def instances(self) -> list[Instance]:
        """The visible part of every object, in the order of painting."""
        return [
            Instance(category, self.owner == number, crowd)
            for number, (category, crowd) in enumerate(self._kinds, start=1)
        ]

    def _corner(self, rng: np.random.Generator, extent: int, cut: bool) -> int:
        room = self.size - extent
        if room < 0:  # larger than the image: near the middle
            return round(0.5 * room + 0.1 * self.size * rng.uniform(-1.0, 1.0))
        over = 0.3 * extent if cut else 0.0
        return round(rng.uniform(-over, room + over))

    def _clip(self, top: int, left: int, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of a window that lies in the image, in the image's and in the window's own coordinates."""
        rows, part_rows = self._clip_axis(top, shape[0])
        columns, part_columns = self._clip_axis(left, shape[1])
        return (rows, columns), (part_rows, part_columns)

    def _clip_axis(self, start: int, extent: int) -> tuple[slice, slice]:
        first, last = max(start, 0), max(min(start + extent, self.size), 0)
        return slice(first, last), slice(first - start, max(last - start, 0))


def _class_colour(rng: np.random.Generator, category: int, kinds: int) -> np.ndarray:
    """Draws a shade of the hue that a class has: with it a small detector learns the classes in a few hundred steps.

    The classes of one kind of scene lie 1/6 apart, and between two of them lies one of each other kind.
    """
    kind, shape = divmod(category, len(CLASSES))
    hue = (shape / len(CLASSES) + kind / (len(CLASSES) * kinds) + rng.normal(0.0, HUE_SPREAD)) % 1.0
    return hsv_to_rgb(hue, rng.uniform(0.85, 1.0), rng.uniform(0.8, 1.0))


def _fill(rng: np.random.Generator, stamp: Stamp, part: tuple[slice, slice], base: np.ndarray) -> np.ndarray:
    """Colours of a stamp's pixels, shape (3, h, w) or (3, 1, 1): plain, shaded, striped, chequered or grainy."""
    style = rng.random()
    if style < 0.92:
        return base
    u, v = stamp.u[part], stamp.v[part]
    brighter = rng.uniform(30.0, 60.0) * (1.0 if base.mean() < 128.0 else -1.0)
    other = np.clip(base + np.float32(brighter), 0.0, 255.0)
    if style < 0.95 or stamp.size < 20.0:
        mix = np.clip(0.5 + 0.5 * u, 0.0, 1.0)
    elif style < 0.97:
        mix = np.clip(3.0 * np.abs((u * np.float32(rng.uniform(1.5, 4.0))) % 1.0 - 0.5) - 0.25, 0.0, 1.0)
    elif style < 0.985:
        cells = np.float32(rng.uniform(1.5, 3.5))
        mix = (np.floor(u * cells) + np.floor(v * cells)) % np.float32(2.0)
    else:
        mix = np.clip(0.5 + 0.3 * rng.standard_normal(u.shape, dtype=np.float32), 0.0, 1.0)
    return base + mix * (other - base)


def _add_object(rng: np.random.Generator, canvas: Canvas, category: int, size: float) -> bool:
    stamp = make_stamp(rng, CLASSES[category % len(CLASSES)], size)
    place = canvas.find_place(rng, stamp.mask)
    if place is None:
        return False
    canvas.paint(rng, stamp, *place, canvas.contrasting_colour(rng, category, *place, stamp.shape))
    canvas.claim(stamp.mask, *place, category, crowd=False)
    return True


def _add_crowd(rng: np.random.Generator, canvas: Canvas, first_class: int) -> bool:
    """Adds many tiny shapes of one class, claimed as one region that also covers the gaps between them."""
    shape = int(rng.integers(len(CLASSES)))
    category = first_class + shape
    member = max(5.5, canvas.size * rng.uniform(0.028, 0.042))
    step, wide = 1.45 * member, rng.uniform(1.0, 1.8)
    across = math.sqrt(rng.uniform(14.0, 40.0) * wide / math.pi)
    down = across / wide
    spots = []
    for row in range(-math.ceil(down), math.ceil(down) + 1):
        for column in range(-math.ceil(across), math.ceil(across) + 1):
            x, y = column + 0.5 * (row % 2) + rng.uniform(-0.25, 0.25), row + rng.uniform(-0.25, 0.25)
            if (x / across) ** 2 + (y / down) ** 2 <= 1.0:
                spots.append((y * step, x * step))
    margin = math.ceil(2.0 * member)
    stamps = [make_stamp(rng, CLASSES[shape], member * rng.uniform(0.85, 1.15)) for _ in spots]
    corners = np.round(np.array(spots) - [[0.5 * s.shape[0], 0.5 * s.shape[1]] for s in stamps]).astype(int)
    corners += margin - corners.min(axis=0)
    height, width = (corners + [s.shape for s in stamps]).max(axis=0) + margin
    union = np.zeros((height, width), dtype=np.uint8)
    for (top, left), stamp in zip(corners, stamps, strict=True):
        union[top : top + stamp.shape[0], left : left + stamp.shape[1]] |= stamp.mask
    reach = 2 * round(0.45 * member) + 1  # closing: grow until the gaps fill, then shrink back
    closed = Image.fromarray(union * 255).filter(ImageFilter.MaxFilter(reach)).filter(ImageFilter.MinFilter(reach))
    region = (np.asarray(closed) > 0) | (union > 0)

    place = canvas.find_place(rng, region)
    if place is None:
        return False
    colours = [canvas.contrasting_colour(rng, category, *place, region.shape) for _ in range(3)]
    for (top, left), stamp in zip(corners, stamps, strict=True):
        canvas.paint(rng, stamp, place[0] + int(top), place[1] + int(left), colours[int(rng.integers(3))])
    canvas.claim(region, *place, category, crowd=True)
    return True


def render_scene(rng: np.random.Generator, scene: Scene, size: int) -> tuple[Image.Image, list[Instance]]:
    """Paints one image.

    Args:
        rng: the image's random stream.
        scene: what it shows.
        size: side of the image in pixels.

    Returns:
        The RGB image and its annotated regions. An object for which no place is found
        is neither painted nor annotated.
    """
    background = render_background(rng, size)
    if scene.kinds > 1:
        tint = hsv_to_rgb(scene.kind / scene.kinds, TINT_SATURATION, TINT_VALUE)
        background += tint - tint.mean()
    canvas = Canvas(background, scene.kinds)
    first_class = scene.kind * len(CLASSES)
    # mostly large to small, so that small objects are seen, with exceptions, so that they are sometimes hidden
    depth = np.log(scene.sizes) + rng.normal(0.0, 0.2, len(scene.sizes))
    order = np.argsort(-depth, kind='stable')
    crowd_at = int(np.sum(depth > math.log(0.25 * size))) if scene.crowd else -1
    for position, index in enumerate(order):
        if position == crowd_at:
            _add_crowd(rng, canvas, first_class)
        _add_object(rng, canvas, first_class + int(scene.classes[index]), float(scene.sizes[index]))
    if crowd_at == len(order):
        _add_crowd(rng, canvas, first_class)

    light = np.float32(1.0) + np.float32(rng.uniform(0.0, 0.25)) * np.linspace(-0.5, 0.5, size, dtype=np.float32)
    image = canvas.image * (light if rng.random() < 0.5 else light[:, None])
    image += np.float32(rng.uniform(1.0, 5.0)) * rng.standard_normal((size, size), dtype=np.float32)
    return to_image(image), canvas.instances()
