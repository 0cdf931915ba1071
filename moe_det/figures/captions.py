"""What every figure says about itself: what it shows, of which layer and levels, from how many objects."""

from __future__ import annotations

from . import values
from .tables import level_names, num_slots

TITLES = {
    'information': 'Information about size given the level',
    'random': 'The trained gate among random gates',
    'swap': 'The swap test',
    'routes': 'Other routes',
    'relative': 'Expert × relative size',
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
    'images': 'Images with the highest weight',
    'objects': 'Objects with the highest weight',
    'routing': 'Routing of one image',
}

DEFINITIONS = {
    'information': 'Information between expert and size among the objects of a level, bias-corrected, with its 95 % '
    'interval, for relative size (circles) and the bins of COCO (squares). Filled: detection unit; hollow: training '
    'unit; bar: what chance alone exceeds in 1 % of permutations.',
    'random': 'Information about relative size given the level (training unit, top expert) of gates with random '
    'weights on the same features, matched in use of the experts, and of the trained gate; not corrected for bias.',
    'swap': 'Every row takes the decision of another image at the same level. Change of AP from the natural routing '
    'with its 95 % interval over images. Thirds: of the objects of each level by area.',
    'routes': 'Change of AP from the natural routing with its 95 % interval over images. Best per image is an upper '
    'bound: it uses the ground truth.',
    'relative': 'Lift over the base rate. Each third has a third of the objects of every level, so a gate that only '
    'recognises its level has about 1 everywhere.',
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
    'images': "The gate's weight for the expert, highest first, then its probability. Boxes: small blue, medium "
    'orange, large green.',
    'objects': 'The weight of the expert in the routing row of the object, highest first, then its probability. Boxes: '
    'small blue, medium orange, large green.',
    'routing': 'Weights of the experts; of several patches in a level, or of all queries, their mean.',
}


def unit_words(layer: dict) -> str:
    """The routing unit in words: ``patch 2 × 2``; with shards ``level, 2 shards of 4 copies``."""
    unit, grid, shards = layer.get('unit') or 'unknown', layer.get('grid'), num_slots(layer)
    words = f'{unit} {grid} × {grid}' if grid else str(unit)
    return words if shards == 1 else f'{words}, {shards} shards of {layer["num_experts"] // shards} copies'


def context(results: dict, layer: dict) -> str:
    """Layer, unit, levels and number of objects."""
    objects, images = values.count(layer.get('n_objects')).text, values.count(layer.get('n_images')).text
    levels = level_names(results, layer)
    seen = {'training': ' (training unit)', 'detection': ' (detection unit)'}.get(str(layer.get('main_unit')), '')
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
