"""Charts of experts: lifts with intervals, AP when forced or knocked out, experts per row, utilisation."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from . import palette, values
from .style import WIDTH, Theme, Wording, new_figure
from .tables import AP_COLUMNS, at, expert_name, num_slots
from .values import finite

AP_LOOK = {
    'AP_S': (palette.size_colour(0), palette.size_marker(0)),
    'AP_M': (palette.size_colour(1), palette.size_marker(1)),
    'AP_L': (palette.size_colour(2), palette.size_marker(2)),
}


def lift_chart(results: dict, layer: dict, theme: Theme, wording: Wording) -> Figure | None:
    """Lift of every expert for every size with its interval, on a logarithmic axis; None without lifts."""
    sizes, experts = results['sizes'], layer['num_experts']
    lifts = [[at(layer.get('lift'), e, s) for s in range(len(sizes))] for e in range(experts)]
    lows = [[at(layer.get('lift_low'), e, s) for s in range(len(sizes))] for e in range(experts)]
    highs = [[at(layer.get('lift_high'), e, s) for s in range(len(sizes))] for e in range(experts)]
    if all(lift is None for row in lifts for lift in row):
        return None
    left, right = _lift_limits([lifts, lows, highs])
    figure = new_figure(WIDTH, 0.9 + 0.36 * experts, theme, wording)
    axes = figure.add_subplot()
    axes.set_xscale('log', base=2)
    axes.axvline(1, color=theme.muted, lw=1)
    for s, size in enumerate(sizes):
        colour, offset = palette.size_colour(s), 0.24 * (s - (len(sizes) - 1) / 2)
        axes.plot([], [], palette.size_marker(s), color=colour, label=str(size['name']))
        for e in range(experts):
            lift, low, high = lifts[e][s], lows[e][s], highs[e][s]
            if lift is None:
                continue
            if low is not None and high is not None:
                axes.plot([max(low, left), min(high, right)], [e + offset] * 2, color=colour, lw=1.6)
            face = 'none' if lift < left else colour  # a lift of 0 stands hollow at the edge of the logarithmic axis
            axes.plot(max(lift, left), e + offset, palette.size_marker(s), color=colour, mfc=face, ms=5, clip_on=False)
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(FixedLocator([2.0**i for i in range(-4, 6) if left <= 2.0**i <= right]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}' if x >= 1 else f'1/{1 / x:g}'))
    axes.set_xlabel('lift over the base rate')
    named_axis(axes, [expert_name(layer, e) for e in range(experts)])
    legend(axes)
    return figure


def _lift_limits(tables: list) -> tuple[float, float]:
    found = [value for table in tables for row in table for value in row if value]
    low = min([0.5, *found])
    high = max([2.0, *found])
    return 2.0 ** max(math.floor(math.log2(low)), -4), 2.0 ** min(math.ceil(math.log2(high)), 5)


def intervention_chart(results: dict, layer: dict, theme: Theme, wording: Wording) -> Figure | None:
    """Change of AP when each expert is forced and when it is knocked out; None if neither was done."""
    natural = (results.get('ap') or {}).get('natural') or {}
    done = [('forced', layer.get('forced')), ('knocked out', layer.get('knocked_out'))]
    panels = [(name, rows) for name, rows in done if rows]
    if not panels or all(finite(natural.get(name)) is None for name in AP_COLUMNS):
        return None
    heights = [len(rows) for _, rows in panels]
    figure = new_figure(WIDTH, 0.8 + 0.5 * len(panels) + 0.34 * sum(heights), theme, wording)
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, rows) in zip(every, panels, strict=True):
        axes.axvline(0, color=theme.muted, lw=1)
        for i, column in enumerate(AP_COLUMNS):
            colour, marker = AP_LOOK.get(column, (theme.ink, '|'))
            look = {'color': colour, 'ms': 11, 'mew': 2} if marker == '|' else {'color': colour, 'ms': 5.5}
            axes.plot([], [], marker, label=column, **look)
            for j, row in enumerate(rows):
                change = values.ap_difference(row.get(column), natural.get(column)).value
                if change is not None:
                    offset = 0 if column == 'AP' else 0.2 * (i - 2)
                    axes.plot(100 * change, j + offset, marker, **look)
        axes.set_title(name, loc='left', size=9.5, weight='bold')
        axes.grid(axis='x')
        axes.set_axisbelow(True)
        named_axis(axes, [expert_name(layer, row['expert']) for row in rows])
    every[-1].set_xlabel('change of AP from the natural routing (points)')
    legend(every[0], above=0.2)
    return figure


def top_k_chart(results: dict, theme: Theme, wording: Wording) -> Figure | None:
    """AP by the number of experts per row at test time; None if it was not swept."""
    rows = (results.get('ap') or {}).get('top_k') or []
    rows = [row for row in rows if any(finite(row.get(name)) is not None for name in AP_COLUMNS)]
    if not rows:
        return None
    figure = new_figure(WIDTH, 2.7, theme, wording)
    axes = figure.add_subplot()
    for column in AP_COLUMNS:
        colour, marker = AP_LOOK.get(column, (theme.ink, 'o'))
        points = [(row['k'], 100 * row[column]) for row in rows if finite(row.get(column)) is not None]
        if points:
            width = 2.4 if column == 'AP' else 1.4
            axes.plot(*zip(*points, strict=True), marker=marker, color=colour, lw=width, ms=5.5, label=column)
    trained = {layer.get('top_k') for layer in results['layers'] if num_slots(layer) == 1}
    if len(trained) == 1 and None not in trained:
        k = trained.pop()
        axes.axvline(k, color=theme.muted, ls=':', lw=1.2)
        place = ('data', 'axes fraction')
        axes.annotate('as trained', (k, 0.02), (3, 0), place, 'offset points', size=9, color=theme.muted)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel('experts per routing row at test time, k')
    axes.set_ylabel('AP (points)')
    axes.margins(y=0.12)
    axes.grid(axis='y')
    legend(axes)
    return figure


def usage_chart(layer: dict, theme: Theme, wording: Wording) -> Figure | None:
    """Importance and load of every expert against the fair share; None if not measured."""
    usage, experts = layer.get('utilisation') or {}, layer['num_experts']
    importance = [at(usage.get('importance_share'), e) for e in range(experts)]
    load = [at(usage.get('load_ratio'), e) for e in range(experts)]
    if all(value is None for value in importance + load):
        return None
    figure = new_figure(WIDTH, 0.8 + 0.27 * experts, theme, wording)
    axes = figure.add_subplot()
    colour = palette.LIGHT['share']
    axes.barh(range(experts), [100 * (value or 0) for value in importance], 0.62, color=colour, label='importance')
    loads = [(100 * value / experts, e) for e, value in enumerate(load) if value is not None]
    if loads:
        axes.plot(*zip(*loads, strict=True), 'D', color=theme.ink, mfc='none', ms=6, mew=1.4, label='load')
    axes.axvline(100 / experts, color=theme.muted, ls='--', lw=1.2, label='fair share')
    axes.set_xlim(left=0)
    axes.set_xlabel('share of all weights, and of all choices (%)')
    named_axis(axes, [expert_name(layer, e) for e in range(experts)])
    legend(axes)
    return figure


def named_axis(axes: Axes, labels: list[str]) -> None:
    """One row per label, from the top."""
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis='y', length=0, pad=7)
    axes.spines['left'].set_visible(False)


def legend(axes: Axes, columns: int = 4, above: float = 0.0) -> None:
    """A legend in one line over the axes, ``above`` inches higher where these have a title."""
    place = axes.transAxes + ScaledTranslation(0, above, axes.figure.dpi_scale_trans)
    axes.legend(
        loc='lower left',
        bbox_to_anchor=(0, 1),
        bbox_transform=place,
        ncols=columns,
        borderaxespad=0.2,
        borderpad=0.2,
        handletextpad=0.4,
        columnspacing=1.2,
        handlelength=1.2,
    )
