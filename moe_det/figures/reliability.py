"""Reliability of scores: precision of the detections of each interval of scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from . import palette
from .style import WIDTH, Theme, Wording, new_figure


def reliability_chart(by_name: Mapping[str, dict], theme: Theme, wording: Wording) -> Figure | None:
    """Precision against the mean score of each bin, a line for each kind of images; None without detections.

    Args:
        by_name: results of :func:`~moe_det.analysis.uncertainty.calibration`, by kind of images.
        theme: colours.
        wording: title and caption.
    """
    drawn = {name: found for name, found in by_name.items() if found['bins']}
    if not drawn:
        return None
    figure = new_figure(WIDTH, WIDTH, theme, wording)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=theme.muted, lw=1, ls='--')
    for number, (name, found) in enumerate(drawn.items()):
        scores, precisions = ([entry[key] for entry in found['bins']] for key in ('score', 'precision'))
        look: dict[str, Any] = {'color': palette.size_colour(number), 'marker': palette.size_marker(number), 'ms': 5}
        axes.plot(scores, precisions, label=f'{name}: D-ECE {100 * found["d_ece"]:.1f} %', **look)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel('mean score')
    axes.set_ylabel('precision')
    axes.grid(axis='both')
    axes.legend(loc='upper left')
    return figure
