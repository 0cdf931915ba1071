"""What runs of several seeds have in common, as the report shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .result import SpecializationResult
from .seeds import agreement


def across_seeds(results: Sequence[dict], measured: Sequence[Mapping[str, SpecializationResult]]) -> dict:
    """Compares the layers of several checkpoints of one config.

    Args:
        results: of each checkpoint, with its verdicts.
        measured: of each checkpoint, the measurement of each layer.

    Returns:
        The part ``seeds`` of the results: each checkpoint's verdicts, and per layer whether its size specialisation is
        established (see :func:`~moe_det.analysis.seeds.agreement`).

    Raises:
        ValueError: the checkpoints have other layers, or layers with other experts or sizes.
    """
    for by_layer in measured[1:]:
        if set(by_layer) != set(measured[0]):
            found = ', '.join(sorted(set(by_layer) ^ set(measured[0])))
            raise ValueError(f'seeds can be compared only if they have the same layers; not all have {found}')
    checkpoints = [
        {
            'checkpoint': result['provenance']['checkpoint'],
            'AP': result['ap']['natural']['AP'],
            'layers': {layer['name']: _of_layer(layer) for layer in result['layers']},
        }
        for result in results
    ]
    slots = {layer['name']: layer.get('slots', 1) for layer in results[0]['layers']}
    layers = {}
    for name in measured[0]:
        verdicts = [run['layers'][name]['verdict'] for run in checkpoints]
        seen = agreement([by_layer[name] for by_layer in measured], verdicts, slots[name])
        layers[name] = {
            'verdict': seen.verdict,
            'agreeing': seen.agreeing,
            'of': seen.runs,
            'runs': seen.runs,
            'p_value': seen.p_value,
            'sentence': f'{seen.verdict.capitalize()}: {seen.reason}.',
            'alignment': [order.tolist() for order in seen.alignment],
            'similarity': seen.similarity.tolist(),
        }
    return {'checkpoints': checkpoints, 'layers': layers}


def _of_layer(layer: dict) -> dict:
    relative = layer.get('relative_size') or {}
    return {
        **{key: layer[key] for key in ('verdict', 'mi_given_level_bits', 'p_value_holm')},
        'relative_bits': relative.get('mi_bits'),
        'relative_p_value_holm': relative.get('p_value_holm'),
    }
