"""One layer of experts, for maps or for tokens, what it is compared with, and a routing that is planted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn

from moe_det.layers import MoEFFN
from moe_det.layers.moe_layer import MoELayer
from moe_det.layers.settings import MoESettings
from moe_det.routing import Router
from moe_det.routing.rows import rows_of

from .patterns import GroupedConvolutions, boolean_mask, index_add_loop

OURS = 'sorted slices'
DENSE_EXPERT = 'dense expert'  # what all are compared with
DENSE_FFN, TOKENS, OVER_IDEAL = 'dense FFN', 'MoEFFN', 'MoEFFN / k dense FFNs'
MARGIN = 1e3  # of the planted logits: above what gates and noise give, and well inside fp32
KL = {'type': 'KLConstraint', 'weight': 0.25}


@dataclass(frozen=True)
class LayerShape:
    """Size of the layer: R rows of C channels and H x W pixels, experts of some 3x3 convolutions with ReLU."""

    rows: int = 8
    channels: int = 128
    height: int = 25
    width: int = 42
    convs: int = 4

    def expert(self) -> nn.Module:
        """One expert, which is also the dense layer that it is compared with."""
        layers: list[nn.Module] = []
        for _ in range(self.convs):
            layers += [nn.Conv2d(self.channels, self.channels, 3, padding=1), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def maps(self) -> Tensor:
        """Random rows."""
        return torch.randn(self.rows, self.channels, self.height, self.width)


@dataclass(frozen=True)
class TokenShape:
    """Size of the layer: tokens of one image, channels, hidden channels, E and K."""

    tokens: int = 10_000
    channels: int = 256
    hidden: int = 1024
    experts: int = 8
    top_k: int = 2

    def dense(self) -> nn.Module:
        """The FFN that the layer replaces, and that it is compared with."""
        return FFN(self.channels, self.hidden, ffn_drop=0.0)

    def layer(self, device: str) -> MoEFFN:
        """Our layer with a KL constraint and planted routing, of all experts alike."""
        layer = MoEFFN(self.dense(), 'moe_speed', num_experts=self.experts, top_k=self.top_k, constraint=KL).to(device)
        plant_routing(layer.router, self.tokens)
        return layer

    def input(self) -> Tensor:
        """(1, tokens, channels)."""
        return torch.randn(1, self.tokens, self.channels)


def plant_routing(router: Router, rows: int, levels: int = 1, active: int | None = None) -> None:
    """Makes a router choose evenly: row i of level l takes the K experts from (i + l) * K on, cyclically.

    With shards it takes copy i + l of each, cyclically. The gate still runs and its logits still set the weights; a
    constant is added to those of the planted experts. So routing is balanced, as after training with a constraint,
    where the gates of a new network would send all rows to few experts. The addition is one small operator per level,
    at our cost.

    Args:
        router: its gate gets a forward hook.
        rows: most rows of a level.
        levels: calls of the gate in one forward.
        active: experts, or copies of each shard, in use, the first ones; all by default.
    """
    copies, chosen = router.copies, router.top_k // router.slots
    active = min(active or copies, copies)
    if chosen > active:
        raise ValueError(f'active={active}: expected at least top_k={chosen}')
    device = next(router.gate.parameters()).device
    table = torch.zeros(levels, rows, router.num_experts)
    for level in range(levels):
        for row in range(rows):
            for choice in range(router.top_k):
                slot, number = divmod(choice, chosen)
                table[level, row, slot * copies + ((row + level) * chosen + number) % active] = MARGIN
    table = table.to(device)
    calls = 0

    def add(gate: nn.Module, args: tuple, logits: Tensor) -> Tensor:
        nonlocal calls
        level, calls = calls % levels, calls + 1
        return logits + table[level, : logits.shape[0]]

    router.gate.register_forward_hook(add)


def moe_layer(
    shape: LayerShape, num_experts: int, top_k: int, device: str = 'cpu', active: int | None = None
) -> MoELayer:
    """Our layer with a KL constraint and planted routing."""
    settings = MoESettings(num_experts=num_experts, top_k=top_k, constraint=KL, soft_mixture=top_k == num_experts)
    layer = MoELayer(settings, shape.channels, shape.expert, 'moe_speed').to(device)
    plant_routing(layer.router, shape.rows, active=active)
    return layer


class PatternLayer(nn.Module):
    """Gate and constraint of one of our layers, its experts run by another pattern.

    Args:
        router: shared with that layer.
        pattern: of rows and routing and, where there are any, experts.
        experts: shared with that layer; None where the pattern has parameters of its own.
    """

    def __init__(self, router: Router, pattern: Callable[..., Tensor], experts: nn.ModuleList | None = None) -> None:
        super().__init__()
        self.router, self.pattern, self.experts = router, pattern, experts

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, H, W) -> (R, C', H, W)."""
        rows, layout = rows_of([x], 'level')
        experts = () if self.experts is None else (self.experts,)
        return self.pattern(rows[0], self.router(rows, layout), *experts)


def pattern_layers(layer: MoELayer) -> dict[str, nn.Module]:
    """Our layer and the references, all with one router and the same weights."""
    router, experts = layer.router, layer.expert_group.experts
    return {
        OURS: layer,
        'boolean masks': PatternLayer(router, boolean_mask, experts),
        'index_add loop': PatternLayer(router, index_add_loop, experts),
        'grouped convolution': PatternLayer(router, GroupedConvolutions(experts).to(next(layer.parameters()).device)),
    }


def layer_step(
    layer: nn.Module,
    x: Tensor,
    training: bool,
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Callable[[], None]:
    """A forward, in training with the auxiliary loss, the backward to inputs and parameters and no optimizer.

    Args:
        layer: one of the above, or a plain expert.
        x: the rows.
        training: whether to train; it also sets the layer's mode, so make the step right before it is used.
        context: autocast of the forward.
    """
    router = getattr(layer, 'router', None)
    x = x.detach().requires_grad_(training)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)

    def infer() -> None:
        with torch.no_grad(), context():
            layer(x)

    def train() -> None:
        with context():
            output = layer(x)
        losses = list(router.collect().values()) if router is not None else []
        torch.autograd.backward([output, *losses], [gradient.to(output.dtype), *[None] * len(losses)])
        x.grad = None
        for parameter in layer.parameters():
            parameter.grad = None

    layer.train(training)
    return train if training else infer
