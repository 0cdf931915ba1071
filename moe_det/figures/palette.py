"""Colours of figures and report: one colour per object size, one diverging and one sequential shade for cells.

Cells are shaded by laying a colour over the surface with an opacity. The same rule then serves light and dark pages
and paper, and the limit :data:`STRONGEST` keeps the text on a shaded cell readable in all of them.
"""

from __future__ import annotations

import math

# Okabe-Ito hues, distinguishable with colour-blindness; at least 3:1 against the light and the dark surface
SIZE_COLOURS = ('#1a7bc0', '#d55e00', '#009e73', '#b0609a', '#7a7f00', '#8a6a4a')
# shapes repeat what the colours say
SIZE_MARKERS = ('o', 's', '^', 'D', 'v', 'P')

STRONGEST = 0.6  # opacity of the strongest shade: text on it keeps a contrast of 4.5:1
LIFT_DOUBLINGS = 2.0  # lifts of 1/4 and 4 have the strongest shade

# purple and gold differ for every common kind of colour-blindness and are no size's colour
LIGHT = {
    'surface': '#ffffff',
    'page': '#f4f5f7',
    'ink': '#16191d',
    'muted': '#5b6470',
    'grid': '#d5d9de',
    'accent': '#0b5c8f',
    'more': '#e0a000',
    'less': '#5e3c99',
    'share': '#00798c',
}
DARK = {
    'surface': '#1b1f26',
    'page': '#12151a',
    'ink': '#f0f2f4',
    'muted': '#a3adb8',
    'grid': '#3a414b',
    'accent': '#7cc4f2',
    'more': '#d79a00',
    'less': '#8a6ad0',
    'share': '#1f9fb5',
}


def size_colour(index: int) -> str:
    """Colour of a size class, counted from the smallest."""
    return SIZE_COLOURS[index % len(SIZE_COLOURS)]


def size_marker(index: int) -> str:
    """Marker (matplotlib) of a size class, counted from the smallest."""
    return SIZE_MARKERS[index % len(SIZE_MARKERS)]


def shade_lift(lift: float | None) -> tuple[str, float]:
    """Shade of a lift: by its logarithm, neutral at 1.

    Returns:
        the colour's name (``more``, ``less`` or empty) and its opacity, at most :data:`STRONGEST`.
    """
    if lift is None:
        return '', 0.0
    return shade_signed(math.log2(lift) / LIFT_DOUBLINGS if lift > 0 else -1.0)


def shade_signed(value: float | None) -> tuple[str, float]:
    """Shade of a value from -1 to 1, neutral at 0; values outside get the strongest shade."""
    if value is None or value == 0:
        return '', 0.0
    return ('more' if value > 0 else 'less'), round(STRONGEST * min(abs(value), 1.0), 3)


def shade_share(share: float | None) -> tuple[str, float]:
    """Shade of a share from 0 to 1."""
    if not share:
        return '', 0.0
    return 'share', round(STRONGEST * min(max(share, 0.0), 1.0), 3)


def over(colour: str, surface: str, opacity: float) -> str:
    """The colour that is seen where ``colour`` lies over ``surface`` with an opacity; all as ``#rrggbb``."""
    mixed = (round(c * opacity + s * (1 - opacity)) for c, s in zip(_rgb(colour), _rgb(surface), strict=True))
    return '#' + ''.join(f'{channel:02x}' for channel in mixed)


def channels(colour: str) -> str:
    """``#rrggbb`` as the ``r g b`` that CSS takes with an opacity."""
    return ' '.join(str(channel) for channel in _rgb(colour))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    parts = [channel / 255 for channel in _rgb(colour)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
