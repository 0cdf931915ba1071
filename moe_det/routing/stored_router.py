"""Whether a router's part of a checkpoint fits the router that it is loaded into."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import CheckpointError
from .selection import SOFTMAX, STRAIGHT_THROUGH, WEIGHTINGS

if TYPE_CHECKING:
    from .router import Router


def check_stored_router(state_dict: dict[str, Tensor], prefix: str, router: Router) -> None:
    """Refuses a checkpoint of another number of experts, another K, other slots or other weights.

    A student gate may use another K and other weights than the gate that it learns from.

    Args:
        state_dict: what is loaded; a router of before this check has nothing to compare.
        prefix: of the router in it.
        router: as the config builds it.

    Raises:
        CheckpointError: it does not fit; names the keys.
    """
    numbers = f'{prefix}experts_and_k'
    if numbers not in state_dict:
        return
    own = (*router.experts_and_k.tolist(), router.weighting)
    if router.gate.freezes_experts and state_dict[numbers][0] == router.num_experts:
        state_dict[numbers] = router.experts_and_k.clone()
        for weighting in WEIGHTINGS:
            state_dict.pop(f'{prefix}{weighting}', None)
        if router.weighting != SOFTMAX:
            state_dict[f'{prefix}{router.weighting}'] = torch.ones(1, dtype=torch.long)
    weighting = next((name for name in WEIGHTINGS if f'{prefix}{name}' in state_dict), SOFTMAX)
    stored = (*state_dict[numbers].tolist(), weighting)
    if stored != own:
        raise CheckpointError(
            f'the checkpoint has {_words(stored, own)} at {prefix.rstrip(".")}, the config {_words(own, stored)}: '
            'change the config to match'
        )


def _words(router: tuple[int, int, str], other: tuple[int, int, str]) -> str:
    """The keys of a router, given as E, K and its weighting."""
    num_experts, top_k, weighting = router
    words = f'num_experts={num_experts}, top_k={top_k}'
    # one of several shards, or a layer that could be its only one
    if weighting == STRAIGHT_THROUGH and (top_k > 1 or (other[1] > 1 and other[2] == STRAIGHT_THROUGH)):
        words = f'shards={top_k}, copies={num_experts // top_k}'
    if weighting == other[2]:
        return words
    return f'{words}, weighting={weighting!r}'
