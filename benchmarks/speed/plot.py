"""The plot of docs/performance.md: time of a layer over E, by pattern, beside k times a dense expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from moe_det.figures.palette import size_colour, size_marker
from moe_det.figures.style import PAPER, Wording, drawing, new_figure

from .layers import DENSE_EXPERT, OURS

PATTERNS = (OURS, 'boolean masks', 'index_add loop', 'grouped convolution')


def draw(sections: dict, stem: Path, machine: str) -> list[Path]:
    """Draws the section ``'patterns'`` of a record as PNG and SVG.

    Args:
        sections: of the record.
        stem: path of the files without their ending.
        machine: ``'CPU'`` or ``'GPU'``, for the title.

    Returns:
        The files; none without measurements of at least two numbers of experts.
    """
    if not has_curves(sections):
        return []
    curves = _curves(sections['patterns'])
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with drawing(PAPER):
        figure = _figure(curves, machine)
        for path in (stem.with_suffix('.png'), stem.with_suffix('.svg')):
            figure.savefig(path, dpi=160, metadata={'Date': None} if path.suffix == '.svg' else None)
            written.append(path)
    return written


def has_curves(sections: dict) -> bool:
    """Whether there is anything to draw over E."""
    curves = _curves(sections.get('patterns', {}))
    return any(len(points) > 1 for panel in curves.values() for points in panel.values())


def _curves(entries: dict) -> dict[tuple[str, int], dict[str, list[tuple]]]:
    """(step, k) -> pattern -> (E, time over one dense expert, quartiles) of the first precision measured."""
    curves: dict[tuple[str, int], dict[str, list[tuple]]] = {}
    precision = None
    for entry in entries.values():
        settings, ratios = entry['settings'], entry['results'].get('ratios')
        precision = precision or settings['precision']
        if not ratios or settings['precision'] != precision:
            continue
        panel = curves.setdefault((settings['phase'], settings['top_k']), {})
        for name in PATTERNS:
            found = ratios[f'{name} / {DENSE_EXPERT}']
            panel.setdefault(name, []).append((settings['experts'], found['median'], *found['quartiles']))
    return {key: {name: sorted(points) for name, points in panel.items()} for key, panel in curves.items()}


def _figure(curves: dict, machine: str) -> Figure:
    keys = sorted(curves, key=lambda key: (key[0] != 'training', key[1]))
    columns = min(2, len(keys))
    lines = -(-len(keys) // columns)
    caption = (
        'Median of the rounds’ ratios, bars: quartiles. Dashed: k dense experts, what the arithmetic asks for. Same '
        'gate, routing (balanced) and weights for all patterns; no optimizer.'
    )
    wording = Wording(f'Time of an MoE layer over one dense expert, {machine}', caption)
    figure = new_figure(7.4, 2.5 * lines + 0.5, PAPER, wording)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(keys) :]:
        axes.set_visible(False)
    for axes, key in zip(grid.flat, keys, strict=False):
        phase, top_k = key
        experts = sorted({point[0] for points in curves[key].values() for point in points})
        axes.axhline(top_k, color=PAPER.muted, lw=1, ls='--')
        for number, name in enumerate(PATTERNS):
            e, median, low, high = np.array(curves[key][name]).T
            look = {'color': size_colour(number), 'marker': size_marker(number), 'ms': 5, 'lw': 1.6, 'capsize': 2}
            axes.errorbar(e, median, yerr=[median - low, high - median], label=name, elinewidth=1, **look)
        axes.set_xscale('log', base=2)
        axes.set_yscale('log', base=2)
        axes.xaxis.set_major_locator(FixedLocator(experts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}'))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{y:g}'))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(axis='y')
        axes.set_title(f'{phase}, k = {top_k}', size=9.5, loc='left')
        axes.set_xlabel('number of experts E')
    for row in grid:
        row[0].set_ylabel('time / dense expert')
    grid.flat[0].legend(loc='upper left', fontsize=8)  # curves rise to the right
    return figure
