"""Charts of the three questions: information about size, the place among random gates, the swap test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import palette, questions
from .charts import AP_LOOK, legend, named_axis
from .style import WIDTH, Theme, Wording, new_figure
from .values import finite

_BINS = 24
_KINDS = (('relative', 'relative size', 'o'), ('coco', "COCO's bins", 's'))


def information_chart(layers: Sequence[dict], theme: Theme, wording: Wording) -> Figure | None:
    """I(E;size | level) of relative size and of COCO's bins in both units; None if there is none.

    Args:
        layers: of the results.
        theme: colours.
        wording: title and caption.
    """
    rows = [(layer, questions.unit_rows(layer)) for layer in layers]
    if not any(given and finite(given.bits) is not None for _, units in rows for given in _given(units)):
        return None
    figure = new_figure(WIDTH, 0.95 + 0.95 * len(rows), theme, wording)
    axes = figure.add_subplot()
    chance = palette.LIGHT['share']
    axes.plot([], [], 'o', color=theme.ink, label='detections')
    axes.plot([], [], 'o', mfc='none', color=theme.ink, label='training')
    axes.plot([], [], '|', color=chance, ms=11, mew=2.6, label='99 % of chance')
    lines = []
    for i, (layer, units) in enumerate(rows):
        name = str(layer['name'])
        name = name if len(name) <= 48 else name[:23] + '…' + name[-24:]
        # above its rows, not next to them: layers have long names
        place = ('axes fraction', 'data')
        axes.annotate(name, (0, 3 * i), (0, 0), place, 'offset points', va='center', size=9.5, weight='bold')
        for j, (kind, words, marker) in enumerate(_KINDS):
            y = 3 * i + 0.85 + j
            lines.append((y, words))
            axes.plot([0, 0], [y - 0.42, y + 0.42], color=theme.muted, lw=1)
            for k, row in enumerate(units):
                given = getattr(row, kind)
                if given is not None:
                    _information(axes, given, y + 0.26 * (k - 0.5), marker, row.name == 'training', theme)
    axes.set_ylim(3 * len(rows) - 0.6, -0.5)
    axes.set_yticks([y for y, _ in lines], [words for _, words in lines])
    axes.tick_params(axis='y', length=0, pad=4)
    axes.spines['left'].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel('bits about size given the level')
    legend(axes)
    return figure


def _given(units: Sequence[questions.UnitRow]) -> list:
    return [given for row in units for given in (row.relative, row.coco)]


def _information(axes, given: questions.Given, y: float, marker: str, hollow: bool, theme: Theme) -> None:
    bounds = given.interval
    if bounds is not None and None not in (finite(bounds[0]), finite(bounds[1])):
        axes.plot(list(bounds), [y, y], color=theme.ink, lw=1.6)
    if finite(given.chance) is not None and not hollow:
        axes.plot(given.chance, y, '|', color=palette.LIGHT['share'], ms=10, mew=2.6)
    if finite(given.bits) is not None:
        face = theme.surface if hollow else theme.ink
        axes.plot(given.bits, y, marker, color=theme.ink, mfc=face, ms=5.5)


def random_gates_chart(layer: dict, theme: Theme, wording: Wording) -> Figure | None:
    """How many random gates have how many bits, their median, and the trained gate; None without."""
    gates = layer.get('random_gates') or {}
    drawn = [value for value in gates.get('values') or [] if finite(value) is not None]
    trained, median = finite(gates.get('bits')), finite(gates.get('median_bits'))
    if not drawn or trained is None:
        return None
    figure = new_figure(WIDTH, 1.9, theme, wording)
    axes = figure.add_subplot()
    low, high = min([*drawn, trained]), max([*drawn, trained])
    span = max(high - low, 1e-6)
    tops, _, _ = axes.hist(
        drawn, bins=_BINS, range=(low, low + span), color=palette.LIGHT['share'], alpha=0.75, label='random gates'
    )
    if median is not None:
        axes.axvline(median, color=theme.muted, ls='--', lw=1.4, label='their median')
    axes.axvline(trained, color=theme.ink, lw=2.4, label='trained gate')
    axes.set_ylim(0, 1.12 * max(float(np.max(tops)), 1))
    axes.set_xlim(low - 0.04 * span, low + 1.04 * span)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel('bits about relative size given the level')
    axes.set_ylabel('random gates')
    legend(axes)
    return figure


def swap_chart(results: dict, layer: dict, theme: Theme, wording: Wording) -> Figure | None:
    """Change of AP by size under the swap test, of the layer and of all layers at once; None without."""
    found = {change.kind: change for change in questions.changes(results, layer)}
    shown = [found[kind] for kind in ('swap', 'all') if kind in found]
    names = [name for name in questions.MEASURES if any(change.difference(name) is not None for change in shown)]
    if not names or 'swap' not in found:
        return None
    figure = new_figure(WIDTH, 0.85 + 0.36 * len(names), theme, wording)
    axes = figure.add_subplot()
    axes.axvline(0, color=theme.muted, lw=1)
    axes.plot([], [], 'o', color=theme.ink, label='this layer')
    if 'all' in found:
        axes.plot([], [], 'o', mfc='none', color=theme.ink, label='all layers')
    for j, name in enumerate(names):
        colour, marker = AP_LOOK.get(name, (theme.ink, 'D'))
        for change in shown:
            whole = change.kind == 'all'
            y = j + (0 if len(shown) == 1 else 0.17 if whole else -0.17)
            _change(axes, change, name, y, colour, marker, theme.surface if whole else colour)
    axes.grid(axis='x')
    axes.set_axisbelow(True)
    named_axis(axes, [questions.MEASURE_NAMES[name] for name in names])
    axes.set_xlabel('change of AP by the swap (points)')
    legend(axes)
    return figure


def routes_chart(results: dict, layer: dict, theme: Theme, wording: Wording) -> Figure | None:
    """Change of AP when routes go between levels, are fixed, or are the best of each image; None without."""
    kinds = ('levels', 'fixed', 'best')
    shown = [change for change in questions.changes(results, layer) if change.kind in kinds]
    names = [name for name in questions.COCO if any(change.difference(name) is not None for change in shown)]
    if not names:
        return None
    figure = new_figure(WIDTH, 0.85 + 0.95 * len(shown), theme, wording)
    axes = figure.add_subplot()
    axes.axvline(0, color=theme.muted, lw=1)
    for i, name in enumerate(names):
        colour, marker = AP_LOOK.get(name, (theme.ink, 'D'))
        axes.plot([], [], marker, color=colour, label=name)
        for j, change in enumerate(shown):
            _change(axes, change, name, j + 0.19 * (i - (len(names) - 1) / 2), colour, marker, colour)
    axes.grid(axis='x')
    axes.set_axisbelow(True)
    words = {'levels': 'between\nlevels', 'fixed': 'one fixed\nroute', 'best': 'best per\nimage'}
    named_axis(axes, [words[change.kind] for change in shown])
    axes.set_xlabel('change of AP (points)')
    legend(axes)
    return figure


def _change(axes, change: questions.Change, name: str, y: float, colour: str, marker: str, face: str) -> None:
    difference, bounds = change.difference(name), change.interval(name)
    if difference is None:
        return
    if bounds is not None:
        axes.plot([100 * bounds[0], 100 * bounds[1]], [y, y], color=colour, lw=1.6)
    axes.plot(100 * difference, y, marker, color=colour, mfc=face, ms=5.5)
