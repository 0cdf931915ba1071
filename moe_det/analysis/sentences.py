"""The verdict on a layer in one sentence."""

from __future__ import annotations


def layer_sentence(layer: dict) -> str:
    """Says what was found on a layer and what it rests on.

    Args:
        layer: results of a layer, complete but for this sentence.
    """
    given, effect = layer['mi_given_level_bits'], layer['cramers_v_given_level']
    numbers = f'I(E;S | level) = {given:.3f} bits, V = {effect:.2f}'
    if layer['p_value_holm'] is not None:
        numbers += f', p = {layer["p_value_holm"]:.2g} (Holm)'
    verdict = layer['verdict']
    if verdict == 'undetermined':
        return f'Undetermined: {layer["p_value_reason"]}.'
    if verdict == 'size-specialised':
        cosine = layer['counterfactual']['agreement']
        return (
            f'Size-specialised: the choice of expert tells the size of an object beyond what its level tells '
            f'({numbers}), and forced experts are better at the sizes that they are used for (agreement {cosine:+.2f}).'
        )
    why = _what_is_missing(layer)
    if verdict == 'level-specialised':
        return (
            f'Level-specialised: the choice of expert follows the pyramid level ({layer["level_mi_bits"]:.3f} bits), '
            f'and {why} ({numbers}).'
        )
    level = f'{layer["level_mi_bits"]:.3f} bits'
    if layer.get('level_p_value') is not None:
        level += f', p = {layer["level_p_value"]:.2g}'
    return f'Not specialised: {why} ({numbers}), and its dependence on the level is not beyond doubt either ({level}).'


def _what_is_missing(layer: dict) -> str:
    if layer['p_value_holm'] is not None and layer['p_value_holm'] > 0.01:
        return 'given the level nothing about size is left that chance does not explain'
    if layer['cramers_v_given_level'] < 0.1:
        return 'what it tells about size given the level is too little to matter (V below 0.1)'
    agrees = layer['counterfactual']['agrees']
    if agrees is None:
        return 'what it tells about size given the level could not be confirmed by forcing the experts'
    return 'forced experts are not better at the sizes that they are used for given the level'
