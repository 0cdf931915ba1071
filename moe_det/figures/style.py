"""Look of the figures, and SVG that takes the colours of the page it stands in."""

from __future__ import annotations

import html
import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .palette import LIGHT

WIDTH = 4.4  # inches of a chart: 317 px wide, so that its text keeps its size on a phone
_PNG_DPI = 160
_POINTS_PER_CHARACTER = 5.2  # of the title's font, about


@dataclass(frozen=True)
class Theme:
    """Colours of everything but the data."""

    ink: str
    muted: str
    grid: str
    surface: str


PAPER = Theme(LIGHT['ink'], LIGHT['muted'], LIGHT['grid'], LIGHT['surface'])
# colours that occur nowhere else; inline_svg puts the page's own in their place
PAGE = Theme('#010203', '#040506', '#070809', 'none')
_VARIABLES = {PAGE.ink: 'var(--ink)', PAGE.muted: 'var(--muted)', PAGE.grid: 'var(--grid)'}


@dataclass(frozen=True)
class Wording:
    """What a figure says about itself.

    Attributes:
        title: what is shown, and of which layer.
        caption: number of objects, levels and definition.
    """

    title: str = ''
    caption: str = ''


@contextmanager
def drawing(theme: Theme, paths: bool = True) -> Iterator[None]:
    """Settings while figures are made and saved.

    Args:
        theme: the colours.
        paths: SVG files hold their text as paths, which look alike everywhere; else as text.
    """
    settings: dict[Any, Any] = {
        'font.family': 'DejaVu Sans',
        'font.size': 9.5,
        'text.color': theme.ink,
        'text.parse_math': False,  # layer and file names may hold dollar signs
        'axes.edgecolor': theme.muted,
        'axes.labelcolor': theme.ink,
        'axes.facecolor': 'none',
        'axes.spines.top': False,
        'axes.spines.right': False,
        'axes.linewidth': 0.8,
        'axes.unicode_minus': True,
        'figure.facecolor': theme.surface,
        'grid.color': theme.grid,
        'grid.linewidth': 0.6,
        'xtick.color': theme.muted,
        'ytick.color': theme.muted,
        'xtick.labelcolor': theme.ink,
        'ytick.labelcolor': theme.ink,
        'legend.frameon': False,
        'legend.fontsize': 9.5,
        'svg.fonttype': 'path' if paths else 'none',
        'svg.hashsalt': 'moe_det',  # the same figure gives the same file
    }
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float, theme: Theme, wording: Wording) -> Figure:
    """An empty figure; title and caption get their own space above and below ``height`` inches."""
    title, caption = _wrapped(wording, width)
    above, below = _space(title, 0.19, 0.1), _space(caption, 0.14, 0.04)
    figure = Figure(figsize=(width, height + above + below), layout='constrained')
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha='left', size=10, weight='bold')
    if caption:
        figure.supxlabel(caption, x=0.01, ha='left', size=7.5, color=theme.muted)
    return figure


def full_axes(figure: Figure, width: float, wording: Wording) -> Axes:
    """Axes without marks that fill what title and caption leave; for figures that place everything themselves.

    Args:
        figure: as :func:`new_figure` made it.
        width: its width in inches.
        wording: its wording.
    """
    title, caption = _wrapped(wording, width)
    height = figure.get_figheight()
    above, below = _space(title, 0.19, 0.1) / height, _space(caption, 0.14, 0.04) / height
    figure.set_layout_engine('none')  # it would measure every text, which takes long
    if title:
        figure.suptitle(title, x=0.01, y=1 - 0.05 / height, ha='left', va='top', size=10, weight='bold')
    if caption:
        figure.supxlabel(caption, x=0.01, y=0.04 / height, ha='left', va='bottom', size=7.5)
    axes = figure.add_axes((0.01, below, 0.98, 1 - above - below))
    axes.set_axis_off()
    return axes


def _wrapped(wording: Wording, width: float) -> tuple[str, str]:
    characters = int(width * 72 / _POINTS_PER_CHARACTER)
    title = textwrap.wrap(wording.title, characters)
    return '\n'.join(title), '\n'.join(textwrap.wrap(wording.caption, int(characters * 1.25)))


def _space(text: str, line: float, gap: float) -> float:
    """Height in inches of lines of text and a gap; nothing for no text."""
    return line * (text.count('\n') + 1) + gap if text else 0.0


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Writes a figure as ``path.png`` and ``path.svg``; must run inside :func:`drawing`.

    ``Figure.savefig`` would draw each once more without output, to measure it.
    """
    png, svg = path.with_name(f'{path.name}.png'), path.with_name(f'{path.name}.svg')
    figure.dpi = _PNG_DPI
    FigureCanvasAgg(figure).print_png(png)
    figure.set_layout_engine('none')  # laid out by now; doing it again takes long
    FigureCanvasSVG(figure).print_svg(svg, metadata={'Date': None})
    return [png, svg]


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """The figure as an ``<svg>`` element for a page; must run inside :func:`drawing` with ``paths=False``.

    Args:
        figure: drawn with the theme :data:`PAGE`.
        prefix: put before every id, so that several figures can stand in one page.
        label: what a screen reader says.
    """
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={'Date': None, 'Creator': None})
    text = buffer.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', '', text)
    text = text.replace('xlink:href=', 'href=')
    text = re.sub(r'(\sid="|href="#|url\(#)', rf'\g<1>{prefix}-', text)
    # the fonts of the page instead of matplotlib's
    text = re.sub(r'font: ([^;"]*?[\d.]+px) [^;"]*', r'font: \1 var(--font)', text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    head = f'<svg role="img" aria-label="{html.escape(label, quote=True)}"'
    return re.sub(r'^<svg width="[^"]*" height="[^"]*"', lambda _: head, text).strip()
