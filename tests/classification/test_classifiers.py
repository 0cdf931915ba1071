"""What all classifiers share: normalisation, losses and their routers, predictions, experts at test time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moe_det.classification.base import MoEClassifier
from moe_det.classification.preprocessor import ClassificationPreprocessor
from moe_det.errors import MoEConfigError
from moe_det.layers.moe_layer import MoELayer
from moe_det.layers.settings import MoESettings
from moe_det.routing.records import UsageRecorder
from moe_det.routing.router import find_routers


class TwoLayers(MoEClassifier):
    """Two MoE layers of 1x1 convolutions, pooled: a classifier whose experts are none."""

    def __init__(self, constraint=None, **kwargs) -> None:
        super().__init__(5, **kwargs)
        for name, experts in (('first', 3), ('second', 4)):
            settings = MoESettings(num_experts=experts, top_k=2, constraint=constraint, noise=False)
            channels = 2 if name == 'first' else 6
            layer = MoELayer(settings, channels, lambda c=channels: nn.Conv2d(c, 6, 1), f'model.{name}', out_channels=6)
            setattr(self, name, layer)
        self.fc = nn.Linear(6, 5)

    def classify(self, inputs):
        return self.fc(self.second(self.first(inputs)).mean((2, 3)))


def batch(number: int = 8):
    return torch.randn(number, 2, 4, 4), torch.arange(number) % 5


def test_losses_are_the_cross_entropy_and_the_constraints_of_all_layers():
    torch.manual_seed(0)
    model = TwoLayers(dict(type='ImportanceConstraint', weight=0.5)).train()
    inputs, labels = batch()
    losses = model(inputs, labels, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_moe_importance', 'error'}
    # by hand, layer by layer
    logits, x, importance = None, inputs, 0.0
    for layer in (model.first, model.second):
        gate = layer.router.gate(x)
        kept, chosen = gate.topk(2)
        weights = torch.zeros_like(gate).scatter(1, chosen, kept.softmax(1))
        sums = weights.sum(0)
        importance = importance + 0.5 * sums.var() / sums.mean() ** 2
        outputs = torch.stack([expert(x) for expert in layer.expert_group.experts], 1)
        x = (weights[:, :, None, None, None] * outputs).sum(1)
    logits = model.fc(x.mean((2, 3)))
    assert torch.allclose(losses['loss_cls'], F.cross_entropy(logits, labels), atol=1e-6)
    assert torch.allclose(losses['loss_moe_importance'], importance, atol=1e-5)
    assert losses['error'] == (logits.argmax(1) != labels).float().mean()
    sum(losses[key] for key in losses if 'loss' in key).backward()  # collected: nothing complains
    assert all(router.gate.fc.weight.grad.abs().sum() > 0 for router in find_routers(model).values())


def test_no_constraint_is_left_over_for_the_next_step():
    model = TwoLayers(dict(type='KLConstraint')).train()
    inputs, labels = batch()
    first = model(inputs, labels, mode='loss')['loss_moe_kl']
    model.classify(inputs * 3)  # a forward that belongs to no step
    assert torch.allclose(model(inputs, labels, mode='loss')['loss_moe_kl'], first)


def test_predictions_of_a_batch():
    model = TwoLayers().eval()
    inputs, labels = batch()
    with torch.no_grad():
        (found,) = model(inputs, labels, mode='predict')
        assert torch.allclose(found['probs'], model(inputs).softmax(1))
        assert set(found['gates']) == {'first', 'second'} and found['expert_classes'] == {}
        assert torch.allclose(found['gates']['first'], model.first.router.gate(inputs).softmax(1))
        assert found['gates']['second'].shape == (8, 4) and found['labels'] is labels
        assert model(inputs, mode='predict')[0]['labels'] is None
    assert all(not router.decided for router in find_routers(model).values())


def test_another_recorder_goes_on_recording():
    model = TwoLayers().eval()
    inputs, _ = batch()
    with torch.no_grad(), UsageRecorder(model) as recorder:
        model(inputs, mode='predict')
        model(inputs, mode='predict')
    assert {name: float(usage.rows) for name, usage in recorder.usage.items()} == {'first': 16, 'second': 16}


def test_number_of_experts_at_test_time():
    torch.manual_seed(0)
    model = TwoLayers(test_top_k=1).eval()
    inputs, labels = batch()
    x = inputs
    for layer in (model.first, model.second):
        best = layer.router.gate(x).argmax(1)
        x = torch.stack([layer.expert_group.experts[e](row[None])[0] for e, row in zip(best, x, strict=True)])
    expected = model.fc(x.mean((2, 3))).softmax(1)
    with torch.no_grad():
        assert torch.allclose(model(inputs, mode='predict')[0]['probs'], expected, atol=1e-6)
        assert torch.allclose(model(inputs).softmax(1), expected, atol=1e-6)
        model.test_top_k = None
        assert not torch.allclose(model(inputs).softmax(1), expected, atol=1e-3)
    model.train()
    model.test_top_k = 1  # training keeps its own K
    loss = model(inputs, labels, mode='loss')['loss_cls']
    model.test_top_k = None
    assert torch.equal(model(inputs, labels, mode='loss')['loss_cls'], loss)


def test_bad_settings():
    for key, value in (('test_top_k', 0), ('test_top_k', True)):
        with pytest.raises(MoEConfigError, match=f'model.{key}={value!r}: expected an integer >= 1'):
            TwoLayers(**{key: value})
    with pytest.raises(MoEConfigError, match='model.num_classes=1: expected an integer >= 2'):
        MoEClassifier(1)
    model = TwoLayers(test_top_k=4).eval()
    with pytest.raises(MoEConfigError, match='model.test_top_k, layer first: top_k=4: expected 1 to 3'):
        model(batch()[0])
    with pytest.raises(ValueError, match="mode='losses': expected one of tensor, loss, predict"):
        model(batch()[0], mode='losses')
    with pytest.raises(ValueError, match='needs the labels'):
        TwoLayers()(batch()[0], mode='loss')


def test_normalisation():
    preprocessor = ClassificationPreprocessor(mean=(0.5, 0.25), std=(0.5, 2.0))
    pixels = torch.randint(0, 256, (3, 2, 4, 4), dtype=torch.uint8)
    expected = (pixels / 255 - torch.tensor([0.5, 0.25]).view(2, 1, 1)) / torch.tensor([0.5, 2.0]).view(2, 1, 1)
    labels = torch.tensor([1, 2, 0])
    for inputs in (pixels, pixels / 255):
        found = preprocessor(dict(inputs=inputs, labels=labels), training=True)
        assert torch.allclose(found['inputs'], expected, atol=1e-5) and found['labels'].tolist() == [1, 2, 0]
    assert torch.allclose(ClassificationPreprocessor()(dict(inputs=pixels))['inputs'], pixels / 255)
    with pytest.raises(MoEConfigError, match='for 2 channels, the images have 3'):
        preprocessor(dict(inputs=torch.zeros(1, 3, 4, 4)))
    for mean, std in (((0.5,), (1.0, 1.0)), ((0.5,), (0.0,))):
        with pytest.raises(MoEConfigError, match='std above 0'):
            ClassificationPreprocessor(mean, std)
