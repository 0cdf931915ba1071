"""ResNets for small images: stem, parameter counts of arXiv 2204.10598, single convolutions with experts."""

from __future__ import annotations

import pytest
import torch
from small_models import build, initialise, spread_weights
from torch import nn

from moe_det.layers import MoEConv2d
from moe_det.routing import find_routers

FOUR = dict(num_experts=4, top_k=2)


def backbone(moe: dict | None = None, **changes) -> nn.Module:
    """A ResNet-18 for small images through the registry, as a config names it; with ``moe`` it has experts."""
    settings = dict(type='SmallImageResNet') if moe is None else dict(type='MoEResNet', small_images=True, moe=moe)
    return build(dict(depth=18, norm_eval=False, init_cfg=[], **{**settings, **changes}))


def evaluated(model: nn.Module, seed: int = 0) -> nn.Module:
    """With weights that tell images apart, in evaluation mode (mmdet's ``eval()`` returns None)."""
    spread_weights(model, seed).eval()
    return model


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(count: int = 4) -> torch.Tensor:
    """Random images of different brightness, so that a gate that pools tells them apart."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 32, 32, generator=generator) + torch.linspace(-1, 1, count).reshape(-1, 1, 1, 1)


def test_the_stem_keeps_the_resolution():
    model = backbone()
    assert model.conv1.weight.shape == (64, 3, 3, 3) and model.conv1.stride == (1, 1) and model.conv1.bias is None
    with torch.no_grad():
        assert [tuple(y.shape[1:]) for y in model(images(1))] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    # torchvision's ResNet-18 has 11,689,512 with a 7x7 stem and 1,000 classes: less head and stem, plus the 3x3 stem
    assert parameters(model) == 11_689_512 - (512 * 1000 + 1000) - 64 * 3 * 49 + 64 * 3 * 9


@pytest.mark.parametrize('moe', [None, dict(**FOUR, stages=(4,)), dict(**FOUR, convs=(4,))])
def test_an_empty_init_cfg_keeps_pytorchs_initialisation(moe):
    torch.manual_seed(0)
    model = initialise(backbone(moe, base_channels=16))
    convs = [m for m in model.modules() if type(m) is nn.Conv2d and m.weight.numel() > 2000]
    assert len(convs) > 10
    for conv in convs:
        bound = (1 / conv.weight[0].numel()) ** 0.5  # U(-1/sqrt(fan_in), 1/sqrt(fan_in))
        assert 0.9 * bound < conv.weight.abs().max() <= bound
    assert all((norm.weight == 1).all() for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))
    if moe is not None:
        experts = [m for m in model.modules() if hasattr(m, 'expert_group')][0].expert_group.experts
        firsts = [next(e.parameters()) for e in experts]
        assert not any(torch.equal(firsts[0], other) for other in firsts[1:])


@pytest.mark.parametrize('convs', [('stem',), (2,), ('stem', 4)])
def test_a_single_convolution_is_the_weighted_sum_of_its_experts(convs):
    model = evaluated(backbone(dict(**FOUR, convs=convs), base_channels=8))
    paths = ['conv1' if c == 'stem' else f'layer{c}.1.conv2' for c in convs]
    assert sorted(find_routers(model)) == sorted(paths)
    for path in paths:
        conv = model.get_submodule(path)
        assert isinstance(conv, MoEConv2d)
        gate = conv.router.gate.fc
        seen = []
        handle = conv.register_forward_hook(lambda m, args, output, seen=seen: seen.append((args[0], output)))
        with torch.no_grad():
            model(images(8))
            # around their mean, maps go to different experts
            gate.bias.copy_(-gate.weight @ seen[0][0].mean((0, 2, 3)))
            model(images(8))
        handle.remove()
        x, y = seen[1]
        chosen_experts = set()
        for n in range(len(x)):
            logits = gate(x[n].mean((1, 2)))
            chosen = logits.argsort(descending=True)[:2].tolist()
            weights = logits[chosen].softmax(0)
            kernels = [conv.expert_group.experts[e].weight for e in chosen]
            mixed = sum(w * kernel for w, kernel in zip(weights, kernels, strict=True))  # convolution is linear
            expected = nn.functional.conv2d(x[n : n + 1], mixed, padding=1, stride=conv.stride)
            torch.testing.assert_close(y[n : n + 1], expected, rtol=1e-4, atol=1e-4)
            chosen_experts.update(chosen)
        assert len(chosen_experts) > 2


def test_convolutions_with_equal_experts_compute_what_the_plain_resnet_does():
    plain = evaluated(backbone(base_channels=8), seed=1)
    model = evaluated(backbone(dict(**FOUR, convs=('stem', 1, 4)), base_channels=8), seed=2)
    state = plain.state_dict()
    for path in ('conv1', 'layer1.1.conv2', 'layer4.1.conv2'):
        weight = state.pop(f'{path}.weight')
        state |= {f'{path}.expert_group.experts.{e}.weight': weight for e in range(4)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all('.router.' in key for key in missing)
    with torch.no_grad():
        for ours, theirs in zip(model(images()), plain(images()), strict=True):
            assert theirs.std() > 1e-3
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
