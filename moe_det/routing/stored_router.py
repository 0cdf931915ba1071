"""Whether a router's part of a checkpoint fits the router that it is loaded into."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import CheckpointError
from .selection import SOFTMAX, STRAIGHT_THROUGH

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
    numbers, kind = f'{prefix}experts_and_k', f'{prefix}{STRAIGHT_THROUGH}'
    if numbers not in state_dict:
        return
    own = (*router.experts_and_k.tolist(), hasattr(router, STRAIGHT_THROUGH))
    if router.gate.freezes_experts and state_dict[numbers][0] == router.num_experts:
        state_dict[numbers] = router.experts_and_k.clone()
        state_dict.pop(kind, None)
        if own[2]:
            state_dict[kind] = torch.ones(1, dtype=torch.long)
    stored = (*state_dict[numbers].tolist(), kind in state_dict)
    if stored != own:
        raise CheckpointError(
            f'the checkpoint has {_words(stored, own)} at {prefix.rstrip(".")}, the config {_words(own, stored)}: '
            'change the config to match'
        )


def _words(router: tuple[int, int, bool], other: tuple[int, int, bool]) -> str:
    """The keys of a router, given as E, K and whether its weights are straight through."""
    num_experts, top_k, straight_through = router
    words = f'num_experts={num_experts}, top_k={top_k}'
    # one of several shards, or a layer that could be its only one
    if straight_through and (top_k > 1 or (other[1] > 1 and other[2])):
        words = f'shards={top_k}, copies={num_experts // top_k}'
    if straight_through == other[2]:
        return words
    weighting = STRAIGHT_THROUGH if straight_through else SOFTMAX
    return f'{words}, weighting={weighting!r}'
