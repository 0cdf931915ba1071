"""What every figure says about itself: what it shows, of which layer and levels, from how many objects."""

from __future__ import annotations

from . import values
from .tables import level_names

TITLES = {
    'information': 'Information about size',
    'size': 'Expert × size',
    'lift': 'Expert × size with intervals',
    'level': 'Expert × level',
    'within': 'Expert × size within each level',
    'interventions': 'AP with experts forced or knocked out',
    'forced': 'AP with one expert forced',
    'knocked_out': 'AP with one expert knocked out',
    'top_k': 'AP by experts per row',
    'usage': 'Utilisation',
    'usage_levels': 'Utilisation by level',
    'units': 'Units side by side',
    'images': 'Images with the highest weight',
    'objects': 'Objects with the highest weight',
    'routing': 'Routing of one image',
}

DEFINITIONS = {
    'information': 'Filled: information between expert and size given the level, bias-corrected, with its 95 % '
    'interval; hollow: the same without regard to the level; bar: what chance alone exceeds in 1 % of permutations.',
    'size': 'Lift: how often the expert has objects of this size over how often it has any object; 1 is its base rate. '
    'Brackets: 95 % interval from a bootstrap over images. Italics: fewer than 10 objects of the size.',
    'lift': 'Lift over the base rate with 95 % intervals from a bootstrap over images; hollow at the edge: below the '
    'axis.',
    'level': "Share of the level's objects that the expert has; columns add to 100 %.",
    'within': "Lift within one level: how often the expert has objects of this size over its share of that level's "
    'objects. A gate that only recognises its level has 1.00 everywhere. Italics: fewer than 10 objects in the column.',
    'interventions': 'Every routing row uses the one expert (forced), or all but that expert (knocked out); AP in '
    'points. Zero is the natural routing.',
    'forced': 'Every routing row of the layer uses this one expert. AP in points; below it the difference from the '
    'natural routing.',
    'knocked_out': 'No routing row of the layer may choose this expert; the next best takes its place. AP in points; '
    'below it the difference from the natural routing.',
    'top_k': 'All MoE layers run the k experts with the highest logits per routing row; the weights are renormalised.',
    'usage': "Importance: the expert's part of all weights. Load: choices of the expert over the fair share.",
    'usage_levels': 'A living expert has more than 1 % of the weights. H_s: mean entropy of a row, low when decisions '
    'are sharp; H_u: entropy of the mean row, log2(E) when all experts are used alike.',
    'units': 'Information about size given the level, by what counts as an object seen by an expert.',
    'images': "The gate's weight for the expert, highest first. Boxes: small blue, medium orange, large green.",
    'objects': 'The weight of the expert in the routing row of the object, highest first. Boxes: small blue, medium '
    'orange, large green.',
    'routing': 'Weights of the experts; of several patches in a level their mean.',
}


def unit_words(layer: dict) -> str:
    """The routing unit in words: ``patch 2 × 2``."""
    unit, grid = layer.get('unit') or 'unknown', layer.get('grid')
    return f'{unit} {grid} × {grid}' if grid else str(unit)


def context(results: dict, layer: dict) -> str:
    """Layer, unit, levels and number of objects."""
    objects, images = values.count(layer.get('n_objects')).text, values.count(layer.get('n_images')).text
    levels = level_names(results, layer)
    seen = {'training': ' (training unit)', 'detection': ' (detection unit)'}.get(layer.get('main_unit'), '')
    return f'Layer {layer["name"]}, unit {unit_words(layer)}; {levels}; n = {objects} objects{seen} in {images} images.'


def data_context(results: dict) -> str:
    """Number of objects and images of the whole analysis."""
    about = results.get('provenance') or {}
    objects, images = values.count(about.get('objects')).text, values.count(about.get('images')).text
    return f'All layers; n = {objects} objects in {images} images.'


def layers_context(results: dict) -> str:
    """Number of objects that the layers were measured on: a range, since layers may see different ones."""
    found = [layer.get('n_objects') for layer in results['layers']]
    counts = sorted({count for count in found if values.finite(count) is not None})
    words = ' to '.join(values.count(count).text for count in counts[:1] + counts[1:][-1:]) or values.MISSING
    images = values.count((results.get('provenance') or {}).get('images')).text
    return f'All layers; n = {words} objects in {images} images.'


def title(kind: str, layer: dict | None = None) -> str:
    """Title of a figure that stands alone."""
    return TITLES[kind] if layer is None else f'{TITLES[kind]}: {layer["name"]}'


def caption(kind: str, results: dict, layer: dict | None = None) -> str:
    """Context and definition of a figure."""
    if layer is not None:
        about = context(results, layer)
    else:
        about = layers_context(results) if kind == 'information' else data_context(results)
    return f'{about} {DEFINITIONS[kind]}'
