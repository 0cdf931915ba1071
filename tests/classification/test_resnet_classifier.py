"""The ResNet classifier against torchvision's ResNet-18 with the stem for small images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_models import build, spread_weights
from torch import nn
from torchvision.models import resnet18

from moe_det.errors import MoEConfigError

KL = dict(type='KLConstraint', weight=0.5)
CLASSES = 7


def torchvisions(seed: int = 0) -> nn.Module:
    """torchvision's ResNet-18 with a 3x3 stem of stride 1 and no max-pooling."""
    model = resnet18(num_classes=CLASSES)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    spread_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, values in model.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return model


def classifier(moe: dict | None = None, **changes) -> nn.Module:
    """The classifier through the registry."""
    backbone = dict(type='SmallImageResNet', depth=18, out_indices=(3,), norm_eval=False, init_cfg=[])
    if moe is not None:
        backbone.update(type='MoEResNet', small_images=True, moe=dict(num_experts=4, top_k=2, **moe))
    backbone.update(changes)
    return build(dict(type='ResNetClassifier', num_classes=CLASSES, backbone=backbone))


def take(model: nn.Module, state: dict) -> nn.Module:
    """Loads a state of torchvision's ResNet; routers keep what they have."""
    renamed = {key if key.startswith('fc.') else f'backbone.{key}': value for key, value in state.items()}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and all('.router.' in key for key in missing)
    return model


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    """Random images of different brightness."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator) + torch.linspace(-1, 1, count).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize('training', [False, True])
def test_without_experts_it_is_torchvisions_resnet18(training):
    theirs = torchvisions()
    ours = take(classifier(), theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    theirs.train(training), ours.train(training)
    labels = torch.tensor([0, 3, 6, 1])
    logits = theirs(images())
    F.cross_entropy(logits, labels).backward()
    losses = ours(images(), labels, mode='loss')
    assert set(losses) == {'loss_cls', 'error'}
    losses['loss_cls'].backward()
    torch.testing.assert_close(losses['loss_cls'], F.cross_entropy(logits, labels), rtol=1e-4, atol=1e-5)
    for name, parameter in theirs.named_parameters():
        own = ours.get_parameter(name if name.startswith('fc.') else f'backbone.{name}')
        scale = parameter.grad.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(own.grad, parameter.grad, rtol=1e-2, atol=1e-3 * scale)


def test_with_equal_experts_it_is_torchvisions_resnet18():
    theirs = torchvisions().eval().double()
    ours = take(classifier(dict(stages=(4,), width=1.0, copy_noise=0)), theirs.state_dict()).eval().double()
    x, labels = images(3, size=16).double(), torch.tensor([0, 3, 6])
    logits = theirs(x)
    torch.testing.assert_close(ours(x), logits)
    F.cross_entropy(logits, labels).backward()
    ours(x, labels, mode='loss')['loss_cls'].backward()
    experts = ours.backbone.layer4.expert_group.experts
    for name, parameter in theirs.named_parameters():
        if name.startswith('layer4.'):  # what the experts learn adds up to what the stage learns
            gradients = [e.get_parameter(name.removeprefix('layer4.')).grad for e in experts]
            own = sum(gradient for gradient in gradients if gradient is not None)
        else:
            own = ours.get_parameter(name if name.startswith('fc.') else f'backbone.{name}').grad
        torch.testing.assert_close(own, parameter.grad, msg=lambda text, name=name: f'{name}: {text}')


def test_loss_has_the_constraints_and_prediction_the_gates():
    model = classifier(dict(stages=(2, 4), constraint=KL), base_channels=8)
    labels = torch.tensor([0, 3, 6, 1])
    losses = model.train()(images(), labels, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_moe_kl', 'error'}
    (predicted,) = model.eval()(images(), labels, mode='predict')
    assert set(predicted['gates']) == {'backbone.layer2', 'backbone.layer4'} and not predicted['expert_classes']
    torch.testing.assert_close(predicted['probs'], model(images()).softmax(1))
    layer = model.backbone.layer4
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    model(images())
    torch.testing.assert_close(
        predicted['gates']['backbone.layer4'], layer.router.gate.fc(seen[0].mean((2, 3))).softmax(1)
    )


def test_backbones_that_do_not_fit_are_named():
    with pytest.raises(MoEConfigError, match=r'backbone\.out_indices=\(0, 1\): the last stage, 3, is classified'):
        classifier(out_indices=(0, 1))
    with pytest.raises(MoEConfigError, match='a MobileNetV2 does not tell the channels of its last map'):
        build(dict(type='ResNetClassifier', num_classes=3, backbone=dict(type='MobileNetV2')))
