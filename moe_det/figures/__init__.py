"""Figures of a size-specialisation analysis, made from its results."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from . import captions, charts, mosaics, question_charts, routing_tables, tables, values
from .heat import draw_heat
from .pictures import Pictures, crop_object, draw_boxes
from .style import PAPER, Theme, Wording, drawing, save_figure

__all__ = ['Pictures', 'crop_object', 'draw_boxes', 'write_figures']


def write_figures(results: dict, out_dir: Path | str, pictures: Pictures | None = None) -> dict[str, Path]:
    """Writes every figure of an analysis as PNG and as SVG into ``out_dir/figures``.

    Args:
        results: the results of an analysis; ``docs/size_specialization.md`` has the schema.
        out_dir: folder of the results.
        pictures: where the pictures lie that the results name; by default below ``out_dir``.

    Returns:
        file name -> path. What was not measured has no figure.

    Raises:
        DataError: the results have another format.
    """
    folder = Path(out_dir) / 'figures'
    results, pictures = values.readable(results), pictures or Pictures(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    with drawing(PAPER):
        for name, make in _figures(results, pictures, PAPER):
            figure = make()
            if figure is None:
                continue
            for path in save_figure(figure, folder / name):
                written[path.name] = path
    return written


def _figures(results: dict, pictures: Pictures, theme: Theme) -> Iterator[tuple[str, Callable[[], Figure | None]]]:
    """File name and maker of every figure there might be."""
    wording = _wording(results, None)
    yield 'information', lambda: question_charts.information_chart(results['layers'], theme, wording('information'))
    yield 'top_k', lambda: charts.top_k_chart(results, theme, wording('top_k'))
    for i, layer in enumerate(results['layers']):
        for kind, make in _layer_figures(results, layer, pictures, theme).items():
            yield f'{i:02d}_{_slug(layer["name"])}_{kind}', make
    for i, example in enumerate(results.get('examples') or []):
        yield f'example_{i:02d}_routing', functools.partial(_routing, results, example, pictures, theme)


def _layer_figures(
    results: dict, layer: dict, pictures: Pictures, theme: Theme
) -> dict[str, Callable[[], Figure | None]]:
    wording = _wording(results, layer)
    heats = {
        'relative': lambda: tables.relative_heat(results, layer),
        'size': lambda: tables.size_heat(results, layer),
        'level': lambda: tables.level_heat(results, layer),
        'within': lambda: tables.within_heat(results, layer),
        'forced': lambda: tables.ap_heat(results, layer, layer.get('forced') or []),
        'knocked_out': lambda: tables.ap_heat(results, layer, layer.get('knocked_out') or []),
        'usage_levels': lambda: routing_tables.usage_heat(results, layer),
    }

    def heat_figure(kind: str) -> Figure | None:
        heat = heats[kind]()
        return draw_heat(heat, theme, wording(kind)) if heat else None

    def favourites(kind: str) -> Figure | None:
        return mosaics.favourites_figure(layer, pictures, kind, theme, wording(kind))

    makers: dict[str, Callable[[], Figure | None]] = {kind: functools.partial(heat_figure, kind) for kind in heats}
    makers['lift'] = lambda: charts.lift_chart(results, layer, theme, wording('lift'))
    makers['interventions'] = lambda: charts.intervention_chart(results, layer, theme, wording('interventions'))
    makers['usage'] = lambda: charts.usage_chart(layer, theme, wording('usage'))
    makers['random'] = lambda: question_charts.random_gates_chart(layer, theme, wording('random'))
    makers['swap'] = lambda: question_charts.swap_chart(results, layer, theme, wording('swap'))
    makers['routes'] = lambda: question_charts.routes_chart(results, layer, theme, wording('routes'))
    for kind in ('images', 'objects'):
        makers[kind] = functools.partial(favourites, kind)
    return makers


def _routing(results: dict, example: dict, pictures: Pictures, theme: Theme) -> Figure | None:
    known = {layer['name']: layer for layer in results['layers']}
    heats = [
        (layer['name'], routing_tables.routing_heat(results, known[layer['name']], layer.get('levels') or []))
        for layer in example.get('layers') or []
        if layer['name'] in known
    ]
    wording = Wording(captions.title('routing'), f'Image {example.get("image_id")}. {captions.DEFINITIONS["routing"]}')
    return mosaics.routing_figure(heats, example.get('picture'), pictures, theme, wording)


def _wording(results: dict, layer: dict | None) -> Callable[[str], Wording]:
    return lambda kind: Wording(captions.title(kind, layer), captions.caption(kind, results, layer))


def _slug(name: str) -> str:
    """Part of a file name that every file system takes; the number before it makes it unique."""
    return re.sub('[^A-Za-z0-9.-]+', '-', name).strip('-.')[:60] or 'layer'
