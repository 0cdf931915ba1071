"""The layout of a backbone's maps under ChannelsLastHook, and that nothing else changes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import HOOKS
from torch import nn

from moe_det.errors import MoEConfigError


class Detector(nn.Module):
    """A convolution, a norm and a pooling as backbone; remembers the layouts that they see."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2))
        self.layouts: list[bool] = []
        for part in self.backbone:
            part.register_forward_hook(
                lambda _, inputs, output: self.layouts.extend(
                    x.is_contiguous(memory_format=torch.channels_last) for x in (*inputs, output)
                )
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)


def run_of(model: nn.Module) -> SimpleNamespace:
    """The part of a runner that the hook sees."""
    return SimpleNamespace(model=model)


def test_backbone_computes_with_channels_last_and_gives_the_same():
    x = torch.randn(2, 3, 33, 35)
    plain, changed = Detector(), Detector()
    hook = HOOKS.build(dict(type='ChannelsLastHook'))
    hook.before_run(run_of(changed))
    results = []
    for model in (plain, changed):
        out = model(x)
        out.square().mean().backward()
        results.append([out, *(p.grad for p in model.parameters()), *model.buffers()])
    assert not any(plain.layouts) and all(changed.layouts) and len(changed.layouts) == 8
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert [p.stride() for p in changed.parameters()] == [p.stride() for p in plain.parameters()]
    assert changed.state_dict().keys() == plain.state_dict().keys()


def test_a_second_run_attaches_nothing_more():
    model = Detector()
    for _ in range(2):
        HOOKS.build(dict(type='ChannelsLastHook')).before_run(run_of(model))
    assert len(model.backbone._forward_pre_hooks) == 1


def test_a_model_without_backbone_is_named():
    with pytest.raises(MoEConfigError, match='Linear has no backbone'):
        HOOKS.build(dict(type='ChannelsLastHook')).before_run(run_of(nn.Linear(2, 2)))
