"""Small MoEFFNs, and the same computed token by token."""

from __future__ import annotations

import torch
from mmcv.cnn.bricks.transformer import FFN

from moe_det.layers import MoEFFN

TOP2 = {'num_experts': 4, 'top_k': 2}
STRAIGHT = {'num_experts': 4, 'top_k': 1, 'weighting': 'straight_through'}
SHARDS = {'placement': 'shards', 'shards': 2, 'copies': 3}
KINDS = {
    'two of four': TOP2,
    'one of four': {'num_experts': 4, 'top_k': 1},
    'straight through': STRAIGHT,
    'shards': SHARDS,
    'shards and a shared one': {**SHARDS, 'shards': 3, 'shared_expert': True},
    'a shard and a shared one': {**SHARDS, 'shards': 1, 'shared_expert': True},
    'common part': {**TOP2, 'copies_share': True},
}


def ffn(**changes) -> FFN:
    """A small FFN."""
    return FFN(**{'embed_dims': 6, 'feedforward_channels': 12, 'ffn_drop': 0.0, **changes})


def layer(dense: FFN | None = None, **moe) -> MoEFFN:
    """Experts in double precision whose gate is far from ties."""
    built = MoEFFN(dense or ffn(), 'decoder.layers.0.ffn', **moe).double()
    with torch.no_grad():
        built.router.gate.fc.weight.normal_(std=3.0)
    return built


def naive(moe: MoEFFN, x: torch.Tensor) -> torch.Tensor:
    """Token by token (or image by image): the logits' largest, softmax, two linear layers each, and the identity."""
    group, router = moe.expert_group, moe.router
    output = torch.empty_like(x)
    for image in range(x.shape[0]):
        for token in range(x.shape[1]):
            seen = x[image, token] if router.unit == 'token' else x[image].mean(0)
            logits = router.gate.fc.weight @ seen + router.gate.fc.bias
            if router.slots > 1:
                by_slot = logits.reshape(router.slots, -1)
                chosen = [slot * by_slot.shape[1] + int(by_slot[slot].argmax()) for slot in range(router.slots)]
                weights = [logits.new_ones(())] * router.slots
            else:
                chosen = logits.sort(descending=True).indices[: router.top_k].tolist()
                weights = torch.softmax(logits[chosen], 0) if router.top_k > 1 else torch.softmax(logits, 0)[chosen]
                if router.weighting == 'straight_through':
                    weights = [logits.new_ones(())]
            total = x[image, token].clone()
            for weight, expert in zip(weights, chosen, strict=True):
                total = total + weight * two_layers(group.weights_of(expert), x[image, token])
            if group.shared is not None:
                total = total + two_layers(dict(group.shared.named_parameters()), x[image, token])
            output[image, token] = total
    return output


def two_layers(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """W2 relu(W1 x + b1) + b2."""
    hidden = torch.relu(weights['layers.0.0.weight'] @ x + weights['layers.0.0.bias'])
    return weights['layers.1.weight'] @ hidden + weights['layers.1.bias']
