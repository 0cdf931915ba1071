"""A control: the same detector with gates that learnt nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..routing.router import find_routers


@contextmanager
def random_gates(model: nn.Module, seed: int) -> Iterator[None]:
    """Gives every gate freshly drawn weights while inside; the experts stay trained.

    Biases start at zero as PyTorch's layers draw them or not, so the gate's decision still depends on its input alone.

    Args:
        model: a model with MoE layers.
        seed: of the weights; the global random state is as before afterwards.
    """
    kept = {name: copy.deepcopy(router.gate.state_dict()) for name, router in find_routers(model).items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for router in find_routers(model).values():
            for module in router.gate.modules():
                if hasattr(module, 'reset_parameters'):
                    module.reset_parameters()
    try:
        yield
    finally:
        for name, router in find_routers(model).items():
            router.gate.load_state_dict(kept[name])
