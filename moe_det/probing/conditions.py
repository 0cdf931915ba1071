"""Routings to evaluate a detector under, besides the gate's own: each expert forced, each knocked out, other K.

Those that need to know what the detector did under its own routing are made in :mod:`moe_det.probing.swaps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from ..routing.intervention import Intervention
from ..routing.router import find_routers

NATURAL = 'natural'  # name of the detector's own routing

# layers under these run after the features: a change of their routing leaves the features as they are
_AFTER_FEATURES = ('bbox_head.', 'rpn_head.', 'roi_head.', 'encoder.', 'decoder.')


@dataclass(frozen=True)
class Condition:
    """One routing to evaluate.

    Attributes:
        name: ``<layer>/forced/<e>``, ``<layer>/knocked_out/<e>``, ``top_k/<k>``, or one of :mod:`.swaps`.
        interventions: by layer.
        losses: whether to compute each image's detection loss as well.
    """

    name: str
    interventions: dict[str, Intervention] = field(hash=False)
    losses: bool = False

    def start_batch(self, images: Sequence[int]) -> None:
        """Names the images of the next forward to interventions that know images apart.

        Args:
            images: position of each image of the batch.
        """
        for intervention in self.interventions.values():
            if intervention.routes is not None:
                intervention.routes.start_batch(images)

    @property
    def keeps_features(self) -> bool:
        """Whether backbone and neck compute what they compute under the detector's own routing."""
        return all(layer.startswith(_AFTER_FEATURES) for layer in self.interventions)


def forced(layer: str, expert: int) -> str:
    """Name of the condition in which ``layer`` gives every row to ``expert``."""
    return f'{layer}/forced/{expert}'


def knocked_out(layer: str, expert: int) -> str:
    """Name of the condition in which ``layer`` gives no row to ``expert``."""
    return f'{layer}/knocked_out/{expert}'


def swapped(layer: str, draw: int) -> str:
    """Name of the condition in which ``layer`` takes the decisions of other images."""
    return f'{layer}/swap/{draw}'


def all_swapped(draw: int) -> str:
    """Name of the condition in which every layer takes the decisions of other images."""
    return f'all/swap/{draw}'


def levels_shifted(layer: str, draw: int) -> str:
    """Name of the condition in which every level of an image takes the decision of another of its levels."""
    return f'{layer}/levels/{draw}'


def routed(layer: str, experts: Sequence[int]) -> str:
    """Name of the condition in which ``layer`` gives every row to these experts."""
    return f'{layer}/route/{"+".join(map(str, experts))}'


def swept(top_k: int) -> str:
    """Name of the condition in which every layer chooses ``top_k`` experts."""
    return f'top_k/{top_k}'


def conditions_of(model: nn.Module, layers: Iterable[str] | None = None) -> list[Condition]:
    """Lists the conditions: for each layer every expert forced and knocked out, then K from 1 to the largest E.

    The detector's own K is its own routing and is left out. In the sweep a layer with fewer than K experts uses
    all, and one with shards, of each of which a row runs one copy, stays as it is.

    Args:
        model: a model with MoE layers.
        layers: those to force and to knock out; None takes all.
    """
    routers = find_routers(model)
    found = []
    for layer in routers if layers is None else layers:
        experts = routers[layer].num_experts
        found += [Condition(forced(layer, e), {layer: Intervention(forced=e)}) for e in range(experts)]
        if experts > routers[layer].slots:
            found += [Condition(knocked_out(layer, e), {layer: Intervention(knocked_out=e)}) for e in range(experts)]
    swept_routers = {layer: router for layer, router in routers.items() if router.slots == 1}
    own = {layer: Intervention(top_k=router.test_top_k) for layer, router in swept_routers.items()}
    most = max((router.num_experts for router in swept_routers.values()), default=0)
    sweep = [with_top_k(model, top_k) for top_k in range(1, most + 1)]
    return [*found, *(condition for condition in sweep if condition.interventions != own)]


def with_top_k(model: nn.Module, top_k: int) -> Condition:
    """The condition in which every layer without shards chooses ``top_k`` experts; a layer with fewer uses all."""
    chosen = {
        layer: Intervention(top_k=min(top_k, router.num_experts))
        for layer, router in find_routers(model).items()
        if router.slots == 1
    }
    return Condition(swept(top_k), chosen)
