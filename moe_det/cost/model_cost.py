"""What a model costs: parameters, the part of them that one decision uses, and multiply-adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..routing.experts import ExpertGroup
from ..routing.hard_constraints import HardConstraint
from ..routing.kernel_mixture import KernelMixture
from ..routing.router import Router, find_routers

if TYPE_CHECKING:
    from mmengine.model import BaseModel


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Returns the number of parameters, and of those that a single routing row uses.

    A row runs K of a layer's E experts, which are alike in size, or one copy of each shard; gates, shared experts and
    everything without experts count in full.
    """
    total = sum(p.numel() for p in model.parameters())
    idle = 0
    for path, group in model.named_modules():
        if isinstance(group, ExpertGroup):
            experts = sum(p.numel() for expert in group.experts for p in expert.parameters())
            router = router_of(model, path)
            if router is not None and not router.needs_keys:  # such a gate looks at what every expert computed
                idle += experts - experts * min(router.test_top_k, len(group)) // len(group)
    return total, total - idle


def router_of(model: nn.Module, path: str) -> Router | None:
    """The router that decides for the experts at ``path``: one below the nearest module that holds both."""
    return next(iter(_routers_near(model, path)), None)  # a head's routers share K and E


def _routers_near(model: nn.Module, path: str) -> list[Router]:
    parts = path.split('.')
    for length in range(len(parts) - 1, -1, -1):
        owner = model.get_submodule('.'.join(parts[:length]))
        routers = [module for module in owner.modules() if isinstance(module, Router)]
        if routers:
            return routers
    return []


def experts_in_words(model: nn.Module) -> str:
    """``'dense'``, or of every kind of layer the constraints' family, what a row chooses, and the unit.

    ``'soft, 2 of 4 per level'`` are K of E experts, ``'soft, 2 shards of 4 copies per level'`` are shards.
    Where kernels are mixed, ``one of the mixed kernels of 4 of 4``.
    """
    kinds = []
    kernels = {
        router
        for path, group in model.named_modules()
        if isinstance(group, KernelMixture)
        for router in _routers_near(model, path)
    }
    for router in find_routers(model).values():
        families = {
            'hard' if isinstance(constraint, HardConstraint) else 'soft' for constraint in router.constraints.values()
        }
        family = ' and '.join(sorted(families, reverse=True)) or 'unconstrained'
        chosen = f'{router.test_top_k} of {router.num_experts}'
        if router.slots > 1:
            chosen = f'{router.slots} shards of {router.copies} copies'
        elif router.rows_per_expert is not None:
            chosen = (
                f'{router.num_experts} experts that choose {router.rows_per_expert} rows each, '
                f'at most {router.test_top_k}'
            )
        elif router in kernels:
            chosen = f'one of the mixed kernels of {chosen}'
        text = f'{family}, {chosen} per {router.unit}'
        if text not in kinds:
            kinds.append(text)
    return '; '.join(kinds) or 'dense'


def count_macs(model: BaseModel, batch: dict) -> tuple[int | None, tuple[int, int]]:
    """Counts the multiply-adds of convolutions and matrix products while a batch of one image runs.

    What really runs is counted: chosen experts, not all. Norms, activations, selection of boxes and operators outside
    ATen (RoIAlign, deformable convolution) are not part of it.

    Returns:
        The number, None where the detector has no plain forward, and height and width of the network's input.
    """
    data = model.data_preprocessor(batch, False)
    return count_forward_macs(model, data), tuple(data['inputs'].shape[-2:])


@torch.no_grad()
def count_forward_macs(model: nn.Module, data: dict) -> int | None:
    """Counts as :func:`count_macs` does, of what the preprocessor made of a batch."""
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            model(**data, mode='tensor')
    except (NotImplementedError, TypeError):
        return None
    return counter.get_total_flops() // 2
