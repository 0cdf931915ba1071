"""The key ``class_mixture`` of a head whose experts are whole branches."""

from __future__ import annotations

import pytest
import torch
from small_models import head, pyramid, spread_weights


@pytest.mark.parametrize('dispatch', ['sorted', 'dense'])
@pytest.mark.parametrize('top_k', [1, 2])
def test_logits_are_mixed_when_the_key_says_so(top_k, dispatch):
    moe = dict(num_experts=4, top_k=top_k, class_mixture='logits', dispatch=dispatch)
    model = spread_weights(head(moe)).double().eval()
    maps = pyramid(images=3, dtype=torch.float64)
    with torch.no_grad():
        scores = model(tuple(maps))[0]
        gate, experts = model.routers['cls'].gate.fc, model.branch_experts['cls'].experts
        for x, found in zip(maps, scores, strict=True):
            for image, ours in zip(x, found, strict=True):
                logits = gate.weight @ image.mean((1, 2)) + gate.bias
                chosen = logits.topk(top_k).indices
                weights = logits[chosen].softmax(0) if top_k > 1 else logits.softmax(0)[chosen]
                values = torch.stack([experts[expert](image[None])[0] for expert in chosen])
                torch.testing.assert_close(ours, torch.einsum('k,kcyx->cyx', weights, values), rtol=1e-9, atol=1e-9)


def test_probabilities_are_the_default():
    mixtures = [
        head(dict(num_experts=4, top_k=2, **key)).branch_experts['cls'].mixture
        for key in ({}, dict(class_mixture='probabilities'), dict(class_mixture='logits'))
    ]
    assert mixtures[0] is mixtures[1] is not mixtures[2]
