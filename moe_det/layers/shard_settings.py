"""Keys of experts that are slices of a dense part: the number of ``shards`` and of ``copies`` of each."""

from __future__ import annotations

from collections.abc import Mapping

from ..checks import check_count
from ..errors import MoEConfigError
from ..routing.kernel_mixture import OUTPUTS

OF_SHARDS = {'shards': 2, 'copies': 4}  # default values


def settings_of_shards(common: dict, own: Mapping, where: str) -> dict:
    """The keys of every MoE layer as they follow from ``shards`` and ``copies``.

    Args:
        common: keys of every MoE layer as the config has them.
        own: the layer's other keys; ``shards`` and ``copies`` have default values.
        where: path of the dict in the config, for messages.

    Raises:
        MoEConfigError: a key that says something else, or that shards have no use for.
    """
    numbers = {**OF_SHARDS, **{key: own[key] for key in OF_SHARDS if key in own}}
    for key, value in numbers.items():
        check_count(where, key, value)
    shards, copies = numbers['shards'], numbers['copies']
    follows = {'num_experts': shards * copies, 'top_k': shards}
    for key, value in follows.items():
        if common.get(key, value) != value:
            raise MoEConfigError(
                f'{where}.{key}={common[key]!r}: follows from shards={shards} and copies={copies} as {value}; '
                'take it out'
            )
    if common.get('weighting', 'straight_through') != 'straight_through':
        raise MoEConfigError(
            f'{where}.weighting={common["weighting"]!r}: shards are chosen straight through; take it out'
        )
    if common.get('expert') is not None:
        raise MoEConfigError(f'{where}.expert: shards are slices of the dense part, not experts of your own')
    if common.get('mixes', OUTPUTS) != OUTPUTS:
        raise MoEConfigError(
            f'{where}.mixes={common["mixes"]!r}: of a shard one copy runs, nothing is mixed; take it out'
        )
    if int(common.get('shared_expert') or 0) > 1:
        raise MoEConfigError(
            f'{where}.shared_expert={common["shared_expert"]!r}: of the slices of the dense part one can be shared; '
            'use True'
        )
    if common.get('rows_per_expert') is not None:
        raise MoEConfigError(
            f'{where}.rows_per_expert={common["rows_per_expert"]!r}: every row runs one copy of each shard; take it out'
        )
    if own.get('width', 1) != 1:
        raise MoEConfigError(f'{where}.width={own["width"]!r}: shards have the width of their slice; take it out')
    if copies == 1:
        if common.get('constraint') or common.get('copies_share'):
            key = 'constraint' if common.get('constraint') else 'copies_share'
            raise MoEConfigError(f'{where}.{key}: with copies=1 every row runs the only copy of each shard')
        follows['soft_mixture'] = True  # every expert runs
    return {key: value for key, value in common.items() if key != 'weighting'} | follows
