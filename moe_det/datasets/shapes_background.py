"""Backgrounds of the synthetic images: fractal textures in muted colours, strokes and soft smudges.

None of it has the crisp closed outline and the strong contrast of the class shapes. Only additions, products and
square roots touch the pixels, so that the same seed gives the same bytes on every processor. Colour images are planar,
shape (3, h, w), until they are stored: numpy's loops then run along rows instead of over three channels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# dull and dim, so that the shapes stand out
MEAN_LEVEL, CONTRAST = np.float32(105.0), np.float32(0.15)


def resize_field(field: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic resize of a float32 field (h, w) to (height, width)."""
    image = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def fractal_noise(rng: np.random.Generator, size: int, coarsest: int, roughness: float) -> np.ndarray:
    """Multi-octave noise scaled to 0..1.

    Args:
        rng: source of the noise.
        size: side of the result in pixels.
        coarsest: number of cells along the side in the lowest octave.
        roughness: amplitude of an octave relative to the one below it.

    Returns:
        Field of shape (size, size), float32.
    """
    field = rng.standard_normal((coarsest, coarsest), dtype=np.float32)
    side, amplitude = coarsest, 1.0
    while side < size:
        side = min(2 * side, size)  # octave by octave: every enlargement is by two, so the sum costs like the last one
        amplitude *= roughness
        field = resize_field(field, side, side)
        if side < size:  # single pixels get their noise at the very end, as from a sensor
            field = field + np.float32(amplitude) * rng.standard_normal((side, side), dtype=np.float32)
    low, high = field.min(), field.max()
    return (field - low) / (high - low)


def to_image(planes: np.ndarray) -> Image.Image:
    """Rounds a planar image, shape (3, h, w), values around 0..255, to an RGB image."""
    return Image.merge('RGB', [Image.fromarray(plane) for plane in np.clip(planes + 0.5, 0.0, 255.0).astype(np.uint8)])


def hsv_to_rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """One colour, all channels in 0..255, shape (3, 1, 1), float32."""
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + 6.0 * hue) % 6.0
        channels.append(255.0 * value * (1.0 - saturation * max(0.0, min(k, 4.0 - k, 1.0))))
    return np.array(channels, dtype=np.float32).reshape(3, 1, 1)


def _muted(rng: np.random.Generator, hue: float, value: float) -> np.ndarray:
    return hsv_to_rgb((hue + rng.uniform(-0.1, 0.1)) % 1.0, rng.uniform(0.05, 0.42), value)


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """One textured surface, shape (3, size, size), float32 in 0..255."""
    hue, value = rng.random(), rng.uniform(0.25, 0.75)
    dark = _muted(rng, hue, max(0.15, value - rng.uniform(0.05, 0.2)))
    light = _muted(rng, hue, min(0.9, value + rng.uniform(0.05, 0.2)))
    mix = fractal_noise(rng, size, int(rng.integers(2, 7)), rng.uniform(0.4, 0.75))
    surface = dark + mix * (light - dark)
    style = rng.random()
    if style < 0.35:  # fibres, as in wood, grass or water
        across, along = max(size // 2, 2), max(size // int(rng.integers(12, 32)), 2)
        grain = rng.standard_normal((across, along), dtype=np.float32)
        grain = resize_field(grain if rng.random() < 0.5 else grain.T, size, size)
        surface += np.float32(rng.uniform(3.0, 9.0)) * grain
    elif style < 0.5:  # weave, as in cloth or tiles
        period = rng.uniform(4.0, 16.0)
        ramp = np.arange(size, dtype=np.float32) / np.float32(period)
        wave = np.abs(ramp % 1.0 - 0.5)
        surface += np.float32(rng.uniform(8.0, 22.0)) * (wave[:, None] + wave[None, :] - np.float32(0.5))
    return surface


def _slope(rng: np.random.Generator, size: int) -> np.ndarray:
    """Linear ramp from -0.5 to 0.5 in a random direction, shape (size, size)."""
    angle = rng.uniform(0.0, 2.0 * math.pi)
    axis = (np.arange(size, dtype=np.float32) - np.float32(0.5 * size)) / np.float32(size)
    return axis[None, :] * np.float32(math.cos(angle)) + axis[:, None] * np.float32(math.sin(angle))


def _smudge(rng: np.random.Generator, surface: np.ndarray) -> None:
    """Darkens or lightens a few blurred, irregular patches in place."""
    size = surface.shape[-1]
    coarse = max(size // 8, 8)
    layer = Image.new('L', (coarse, coarse), 128)
    draw = ImageDraw.Draw(layer)
    for _ in range(rng.poisson(3.0)):
        centre, spread = rng.uniform(0.0, coarse, 2), rng.uniform(1.5, 5.0)
        points = [tuple(centre + rng.normal(0.0, spread, 2)) for _ in range(6)]
        draw.polygon(points, fill=int(rng.integers(60, 196)))
    soft = layer.filter(ImageFilter.BoxBlur(1.0))
    surface += np.float32(0.4) * resize_field(np.asarray(soft, dtype=np.float32) - 128.0, size, size)


def _strokes(rng: np.random.Generator, image: Image.Image) -> None:
    """Draws twigs and tufts: open, curved lines in colours near those already there."""
    size = image.width
    draw = ImageDraw.Draw(image)

    def stroke(start: np.ndarray, length: float, width: int) -> None:
        angle, bend = rng.uniform(0.0, 2.0 * math.pi), rng.uniform(-1.2, 1.2)
        x, y = min(max(int(start[0]), 0), size - 1), min(max(int(start[1]), 0), size - 1)
        shift = rng.uniform(18.0, 45.0) * (1.0 if rng.random() < 0.5 else -1.0)
        pixel: Any = image.getpixel((x, y))  # of three channels
        colour = tuple(int(min(max(channel + shift, 0), 255)) for channel in pixel)
        points = [tuple(start)]
        for _ in range(5):
            angle += 0.2 * bend
            previous = points[-1]
            points.append((previous[0] + 0.2 * length * math.cos(angle), previous[1] + 0.2 * length * math.sin(angle)))
        draw.line(points, fill=colour, width=width)

    for _ in range(rng.poisson(3.0)):
        stroke(rng.uniform(0.0, size, 2), size * rng.uniform(0.1, 0.5), int(rng.integers(1, 4)))
    for _ in range(rng.poisson(1.0)):
        centre = rng.uniform(0.0, size, 2)
        for _ in range(int(rng.integers(6, 16))):
            stroke(centre + rng.normal(0.0, 0.06 * size, 2), rng.uniform(5.0, 16.0), 1)


def render_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Paints everything that belongs to no class.

    Args:
        rng: the image's random stream.
        size: side of the image in pixels.

    Returns:
        Canvas of shape (3, size, size), float32 in 0..255.
    """
    surface = _ground(rng, size)
    if rng.random() < 0.35:  # two surfaces that meet in an uneven line, as ground and sky do
        edge = _slope(rng, size) + np.float32(rng.uniform(-0.25, 0.25))
        edge = edge + np.float32(0.12) * (fractal_noise(rng, size, 3, 0.45) - np.float32(0.5))
        part = np.clip(edge * np.float32(size / 3.0) + 0.5, 0.0, 1.0)
        surface += part * (_ground(rng, size) - surface)
    surface += np.float32(rng.uniform(0.0, 70.0)) * _slope(rng, size)
    _smudge(rng, surface)
    image = to_image(surface)
    _strokes(rng, image)
    image = image.filter(ImageFilter.BoxBlur(0.6))
    pixels = np.stack([np.asarray(channel, dtype=np.float32) for channel in image.split()])
    return MEAN_LEVEL + CONTRAST * (pixels - np.float32(128.0))
