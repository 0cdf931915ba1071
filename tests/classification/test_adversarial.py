"""Adversarial training of classifiers: the attack by hand on a linear one, and a few steps of a run."""

from __future__ import annotations

import types

import pytest
import torch
from mmengine.optim import OptimWrapper
from small_models import REPOSITORY, build, config_file, initialise
from torch import Tensor

from moe_det.classification.adversarial import AdversarialTestHook, AdversarialTrainingHook, PGDHook
from moe_det.classification.base import MoEClassifier
from moe_det.classification.preprocessor import ClassificationPreprocessor
from moe_det.errors import MoEConfigError
from moe_det.routing.records import UsageRecorder

CONFIGS = REPOSITORY / 'configs' / 'classification'


class Linear(MoEClassifier):
    """Two classes; the score of the second less that of the first is a weighted sum of the pixels."""

    def __init__(self, **kwargs) -> None:
        super().__init__(2, **kwargs)
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.modes: list[bool] = []

    def classify(self, inputs: Tensor) -> Tensor:
        self.modes.append(self.training)
        value = inputs.flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(value), value], dim=1)


def batch(images: Tensor, *labels: int) -> dict:
    return {'inputs': images, 'labels': torch.tensor(labels)}


def test_pixels_of_a_linear_classifier_move_against_their_class():
    """For class 1 down the weights, for class 0 up, by 8/255, within 0 ... 1, whatever the normalisation is."""
    model = Linear(data_preprocessor=ClassificationPreprocessor(mean=(0.5,), std=(0.1,)))
    model.train()
    images = torch.tensor([[100, 1, 200], [100, 250, 0]], dtype=torch.uint8).view(2, 1, 1, 3)
    found = PGDHook(steps=10).attacked(model, images, torch.tensor([1, 0])) * 255
    expected = torch.tensor([[92.0, 9.0, 192.0], [108.0, 242.0, 8.0]])
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-3, rtol=0)
    dark = torch.tensor([[4, 0, 253]], dtype=torch.uint8).view(1, 1, 1, 3)
    found = PGDHook(steps=10).attacked(model, dark, torch.tensor([0])) * 255
    torch.testing.assert_close(found.flatten(), torch.tensor([12.0, 0.0, 255.0]), atol=1e-3, rtol=0)
    assert model.training and not any(model.modes) and model.weight.grad is None


def test_floating_point_images_are_taken_as_they_are():
    model = Linear()
    bytes_ = torch.randint(0, 256, (4, 1, 1, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1])
    hook = PGDHook(steps=10)
    first, second = (hook.attacked(model, images, labels) for images in (bytes_, bytes_.float() / 255))
    torch.testing.assert_close(first, second)


def test_the_hooks_attack_training_and_test_and_leave_validation_alone():
    runner = types.SimpleNamespace(model=Linear())
    images = torch.full((1, 1, 1, 3), 100, dtype=torch.uint8)
    for hook, name in ((AdversarialTrainingHook(), 'before_train_iter'), (AdversarialTestHook(), 'before_test_iter')):
        for method in ('before_train_iter', 'before_val_iter', 'before_test_iter'):
            data = batch(images, 1)
            with torch.no_grad():  # as mmengine's loops for validation and test
                getattr(hook, method)(runner, 0, data)
            assert torch.equal(data['inputs'], images) == (method != name)
    assert (AdversarialTrainingHook().steps, AdversarialTestHook().steps) == (7, 20)


def test_an_infinite_gate_noise_is_not_seen_by_the_attack():
    """The gate decides without noise while images are attacked: the same start gives the same image."""
    cfg = config_file(CONFIGS / 'resnet18_moe_adversarial_cifar10.py')
    cfg.model.backbone.base_channels = 8
    torch.manual_seed(0)
    model = initialise(build(cfg.model)).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(4)
    statistics = {key: value.clone() for key, value in model.state_dict().items()}
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(PGDHook(steps=2).attacked(model, images, labels))
    assert torch.equal(*found)
    assert all(torch.equal(value, statistics[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_steps_of_the_attack_are_not_counted_as_decisions_of_the_test():
    cfg = config_file(CONFIGS / 'resnet18_moe_adversarial_cifar10.py')
    cfg.model.backbone.base_channels = 8
    model = initialise(build(cfg.model)).eval()
    data = batch(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), 0, 1, 2, 3)
    with UsageRecorder(model) as recorder:
        AdversarialTestHook(steps=3).before_test_iter(types.SimpleNamespace(model=model), 0, data)
        model.test_step(data)
    assert recorder.usage and all(usage.rows.sum() == 4 for usage in recorder.usage.values())


def test_a_few_steps_on_attacked_images_lower_their_error():
    cfg = config_file(CONFIGS / 'resnet18_moe_adversarial_cifar10.py')
    names = [hook['type'] for hook in cfg.custom_hooks]
    assert names[-2:] == ['AdversarialTrainingHook', 'AdversarialTestHook'] and 'MoEHook' in names
    model = Linear()
    torch.nn.init.zeros_(model.weight)
    runner = types.SimpleNamespace(model=model)
    hook, wrapper = AdversarialTrainingHook(steps=2), OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    images = torch.tensor([[200, 60, 128], [60, 200, 128]] * 4, dtype=torch.uint8).view(8, 1, 1, 3)
    losses = []
    for _ in range(5):
        data = batch(images, *[1, 0] * 4)
        hook.before_train_iter(runner, 0, data)
        losses.append(model.train_step(data, wrapper)['loss_cls'].item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize(('key', 'value'), [('steps', 0), ('eps', -1), ('step', 0), ('eps', 'eight')])
def test_mistakes_are_one_message(key, value):
    with pytest.raises(MoEConfigError, match=f'AdversarialTrainingHook.{key}={value!r}: expected'):
        AdversarialTrainingHook(**{key: value})
