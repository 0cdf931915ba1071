"""Renders results into ``report.html``: no network, no script, everything embedded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ..analysis.result import UNDETERMINED, VERDICTS
from ..figures import captions, charts, palette, question_charts, questions, routing_tables, tables, values
from ..figures.pictures import Pictures
from ..figures.style import PAGE, Wording, drawing, inline_svg
from ..figures.values import Number
from .embedding import Embedder
from .routing_view import example_views

_FOLDER = Path(__file__).parent
# one picture per expert and kind at least; this many in the whole page before experts get fewer
_MANY_PICTURES = 640
_MOST_PER_EXPERT = 8
_MANY_LAYERS = 4  # a page with more folds all layers but the first


@dataclass(frozen=True)
class LayerView:
    """A layer of the results and what the page shows of it; what was not measured is empty or None."""

    index: int
    layer: dict
    context: str
    short: str
    tables: dict
    charts: dict
    favourites: list[dict]


def write_report(results: dict, out_dir: Path | str) -> Path:
    """Writes ``report.html`` into the folder of the results.

    Pictures are read from the paths that the results name, relative to the folder; missing ones are left out. The
    page fetches nothing and runs no script: its content security policy forbids both.

    Args:
        results: the results of an analysis; ``docs/size_specialization.md`` has the schema.
        out_dir: folder of the results.

    Returns:
        path of the page.

    Raises:
        DataError: the results have another format.
    """
    results = values.readable(results)
    path = Path(out_dir) / 'report.html'
    path.parent.mkdir(parents=True, exist_ok=True)
    page = _render(results, Embedder(Pictures(out_dir)))
    draft = path.with_suffix('.html.part')
    # file names that are not valid unicode must not cost the page
    draft.write_text(page, encoding='utf-8', errors='backslashreplace')
    draft.replace(path)  # never half a page
    return path


def _render(results: dict, embedder: Embedder) -> str:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['data'] = data_element
    with drawing(PAGE, paths=False):
        views = [_layer_view(results, i, embedder) for i in range(len(results['layers']))]
        information = _inline(question_charts.information_chart(results['layers'], PAGE, Wording()), 'information')
        top_k = _inline(charts.top_k_chart(results, PAGE, Wording()), 'topk')
    return environment.get_template('report_template.html').render(
        results=results,
        about=results.get('provenance') or {},
        natural=(results.get('ap') or {}).get('natural') or {},
        views=views,
        information=information,
        top_k=top_k,
        many=len(views) > _MANY_LAYERS,
        examples=example_views(results, embedder),
        pictures_left_out=embedder.left_out,
        seeds=results.get('seeds') or {},
        css=Markup((_FOLDER / 'report.css').read_text(encoding='utf-8')),
        colours=Markup(_colours()),
        verdict_class=_verdict_class,
        captions=captions,
        questions=questions,
        palette=palette,
        tables=tables,
        values=values,
    )


def _verdict_class(verdict: str | None) -> str:
    return verdict.replace(',', '').replace(' ', '-') if verdict in VERDICTS else UNDETERMINED


def data_element(number: Number) -> Markup:
    """A number as HTML: ``<data>`` carries the exact value next to the printed one."""
    if number.value is None:
        text = number.text or values.MISSING
        return Markup('<span class="none" title="{}">{}</span>').format(number.why or 'not available', text)
    return Markup('<data value="{}">{}</data>').format(repr(number.value), number.text)


def _layer_view(results: dict, index: int, embedder: Embedder) -> LayerView:
    layer = results['layers'][index]
    units = layer.get('units') or {}
    image = units.get('image') or {}
    heats = {
        'size': tables.size_heat(results, layer),
        'relative': tables.relative_heat(results, layer),
        'level': tables.level_heat(results, layer),
        'within': tables.within_heats(results, layer),
        'forced': tables.ap_heat(results, layer, layer.get('forced') or []),
        'knocked_out': tables.ap_heat(results, layer, layer.get('knocked_out') or []),
        'usage': routing_tables.usage_heat(results, layer),
        'usage_summary': routing_tables.usage_summary(results, layer),
        'detection': tables.unit_heat(results, layer, units.get('detection') or {}),
        'training': tables.unit_heat(results, layer, units.get('training') or {}),
        'image': routing_tables.spearman_heat(results, layer, image),
    }
    figures = {
        'lift': charts.lift_chart(results, layer, PAGE, Wording()),
        'interventions': charts.intervention_chart(results, layer, PAGE, Wording()),
        'usage': charts.usage_chart(layer, PAGE, Wording()),
        'random': question_charts.random_gates_chart(layer, PAGE, Wording()),
        'swap': question_charts.swap_chart(results, layer, PAGE, Wording()),
        'routes': question_charts.routes_chart(results, layer, PAGE, Wording()),
    }
    inline = {
        kind: _inline(figure, f'{kind}{index}', f'{captions.TITLES[kind]}, layer {layer["name"]}')
        for kind, figure in figures.items()
    }
    experts = sum(other['num_experts'] for other in results['layers'])
    most = max(1, min(_MOST_PER_EXPERT, _MANY_PICTURES // (2 * experts)))
    favourites = [_favourites(entry, most, results, embedder) for entry in layer.get('favourites') or []]
    return LayerView(
        index, layer, captions.context(results, layer), f'Layer {layer["name"]}.', heats, inline, favourites
    )


def _inline(figure: Figure | None, prefix: str, label: str = '') -> Markup | None:
    if figure is None:
        return None
    return Markup(inline_svg(figure, prefix, label or captions.TITLES.get(prefix, 'AP by experts per row')))


def _favourites(entry: dict, most: int, results: dict, embedder: Embedder) -> dict:
    """An expert's top-activating images and objects with their pictures embedded."""
    order = {size['name']: i for i, size in enumerate(results['sizes'])}
    shown = {'expert': entry['expert'], 'images': [], 'objects': [], 'left_out': 0}
    for kind in ('images', 'objects'):
        items = entry.get(kind) or []
        shown['left_out'] += len(items[most:])
        for item in items[:most]:
            source = embedder.source(item.get('picture'))
            shown[kind].append({**item, 'source': source, 'size_index': order.get(item.get('size'))})
    return shown


def _colours() -> str:
    """The palette as CSS variables, for light and for dark."""

    def block(colours: dict[str, str]) -> str:
        shades = ('more', 'less', 'share')
        plain = [f'--{name}:{colour};' for name, colour in colours.items() if name not in shades]
        return ''.join([*plain, *(f'--{name}:{palette.channels(colours[name])};' for name in shades)])

    sizes = ''.join(f'--size{i}:{colour};' for i, colour in enumerate(palette.SIZE_COLOURS))
    dark = f'@media (prefers-color-scheme:dark){{:root{{{block(palette.DARK)}}}}}'
    return f':root{{{sizes}{block(palette.LIGHT)}}}{dark}'
