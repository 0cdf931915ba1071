"""What runs of several seeds have in common, as the report shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .result import SpecializationResult
from .seeds import agreement


def across_seeds(results: Sequence[dict], measured: Sequence[Mapping[str, SpecializationResult]]) -> dict:
    """Compares the layers of several checkpoints of one config.

    Args:
        results: of each checkpoint.
        measured: of each checkpoint, the measurement of each layer.

    Returns:
        The part ``seeds`` of the results: each checkpoint's verdicts, and per layer whether its size specialisation is
        established (see :func:`~moe_det.analysis.seeds.agreement`).
    """
    checkpoints = [
        {
            'checkpoint': result['provenance']['checkpoint'],
            'AP': result['ap']['natural']['AP'],
            'layers': {
                layer['name']: {key: layer[key] for key in ('verdict', 'mi_given_level_bits', 'p_value_holm')}
                for layer in result['layers']
            },
        }
        for result in results
    ]
    layers = {}
    for name in measured[0]:
        found = agreement([by_layer[name] for by_layer in measured])
        layers[name] = {
            'verdict': found.verdict,
            'agreeing': sum(verdict == 'size-specialised' for verdict in found.verdicts),
            'of': len(found.verdicts),
            'sentence': f'{found.verdict.capitalize()}: {found.reason}.',
            'alignment': [order.tolist() for order in found.alignment],
            'similarity': found.similarity.tolist(),
        }
    return {'checkpoints': checkpoints, 'layers': layers}
