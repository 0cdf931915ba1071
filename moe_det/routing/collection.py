"""Adds the auxiliary losses of a model's MoE layers to the losses that the model returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .router import Router, find_routers


def collect_losses(routers: list[Router]) -> dict[str, Tensor]:
    """Computes the constraints of one step; losses of one kind are summed over layers.

    Args:
        routers: in an order that is the same in every process.

    Returns:
        ``loss_moe_<constraint key>`` -> scalar with gradient.
    """
    losses: dict[str, Tensor] = {}
    for router in routers:
        for key, loss in router.collect().items():
            name = f'loss_moe_{key}'
            losses[name] = losses[name] + loss if name in losses else loss
    return losses


def attach_collection(model: nn.Module, optimizer_follows: Callable[[], bool] = lambda: True) -> list[RemovableHandle]:
    """Makes a detector add its layers' auxiliary losses to the loss dict that its ``forward`` returns.

    Works on the detector inside a data-parallel wrapper too: the losses are then part of the wrapped forward. Layers
    that the forward has collected itself, such as those of MoERetinaHead, are left to it.

    Args:
        model: a detector whose forward in ``mode='loss'`` returns a dict.
        optimizer_follows: whether a step of the optimizer follows the forward that begins.

    Returns:
        Handles; ``remove()`` undoes it.
    """
    routers = list(find_routers(model).values())
    collections: list[int] = []  # of each router, before the forward

    def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.training or kwargs.get('mode') == 'loss':
            for router in routers:  # an interrupted forward must not move the next one's levels
                router.start_step(optimizer_follows())
        collections[:] = [router.step.collections for router in routers]

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> object:
        if not module.training or not isinstance(output, dict):
            return output
        left = [r for r, before in zip(routers, collections, strict=True) if r.step.collections == before]
        losses = collect_losses(left)
        return {**output, **losses} if losses else output

    return [
        model.register_forward_pre_hook(start, with_kwargs=True),
        model.register_forward_hook(add, with_kwargs=True),
    ]
