"""FrozenFPN is mmdet's FPN that does not train."""

from __future__ import annotations

import torch
from small_models import detector

SETTINGS = dict(type='FrozenFPN', norm_cfg=dict(type='BN'))


def test_same_names_and_values_as_fpn():
    plain = detector(neck=dict(norm_cfg=dict(type='BN'))).neck.eval()
    frozen = detector(neck=SETTINGS).neck
    frozen.load_state_dict(plain.state_dict(), strict=True)
    maps = [torch.randn(2, c, s, s) for c, s in ((8, 16), (16, 8), (32, 4), (64, 2))]
    for ours, theirs in zip(frozen.train()(maps), plain(maps), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_and_statistics_survive_training_and_gradients_pass_through():
    model = detector(neck=SETTINGS).train()
    assert not any(p.requires_grad for p in model.neck.parameters())
    before = {key: value.clone() for key, value in model.neck.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    maps = [torch.randn(2, c, s, s, requires_grad=True) for c, s in ((8, 16), (16, 8), (32, 4), (64, 2))]
    sum(y.square().sum() for y in model.neck(maps)).backward()
    optimiser.step()
    assert all(torch.equal(value, before[key]) for key, value in model.neck.state_dict().items())
    assert all(p.grad is None for p in model.neck.parameters())
    assert all(x.grad.abs().sum() > 0 for x in maps[1:])  # this pyramid starts at the second map
    assert not any(module.training for module in model.neck.modules())
