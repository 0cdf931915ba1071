"""Cost of small detectors, counted by hand."""

from __future__ import annotations

import pytest
import torch
from small_models import batch, detector
from torch import nn

from moe_det.cost.model_cost import count_macs, experts_in_words, parameter_counts
from moe_det.routing import find_routers

FOUR = dict(num_experts=4, top_k=2)


def expert_parameters(model: nn.Module) -> int:
    """Parameters of all experts, by their names."""
    return sum(p.numel() for name, p in model.named_parameters() if '.experts.' in name)


def test_a_dense_model_uses_all_of_its_parameters():
    model = detector()
    total = sum(p.numel() for p in model.parameters())
    assert parameter_counts(model) == (total, total)
    assert experts_in_words(model) == 'dense'


@pytest.mark.parametrize('moe', [FOUR, dict(FOUR, shared_gate=True), dict(FOUR, shared_expert=True)])
def test_idle_experts_are_not_active(moe):
    model = detector(moe, backbone=dict(type='MoEResNet', moe=dict(stages=(4,), num_experts=3, top_k=1)))
    backbone = expert_parameters(model.backbone)
    head = expert_parameters(model.bbox_head)
    assert backbone % 3 == head % 4 == 0
    total = sum(p.numel() for p in model.parameters())
    assert parameter_counts(model) == (total, total - backbone * 2 // 3 - head // 2)


def test_words_name_family_and_unit():
    kl, hard = dict(type='KLConstraint'), dict(type='RelativeImportanceConstraint')
    for moe, words in (
        (dict(FOUR, constraint=kl), 'soft, 2 of 4 per level'),
        (dict(FOUR, constraint=hard, unit='patch', grid=2), 'hard, 2 of 4 per patch'),
        (dict(FOUR, constraint=[hard, kl]), 'soft and hard, 2 of 4 per level'),
        (dict(FOUR, unit='image'), 'unconstrained, 2 of 4 per image'),
        (dict(placement='shards', shards=2, copies=4, constraint=kl), 'soft, 2 shards of 4 copies per level'),
    ):
        assert experts_in_words(detector(moe)) == words


def convolutions(model: nn.Module, run) -> int:
    """Multiply-adds of every convolution and linear layer that ran, from their shapes."""
    total = 0

    def add(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        else:
            total += (
                output.numel() * module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            )

    handles = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    run()
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize('experts', [1, 4, 8])
def test_multiply_adds_are_those_of_the_layers_that_ran(experts):
    model = detector(dict(FOUR, num_experts=experts) if experts > 1 else None).eval()
    data = batch([(64, 96)])
    macs, size = count_macs(model, data)
    assert size == (64, 96)
    expected = convolutions(model, lambda: model(**model.data_preprocessor(data, False), mode='tensor'))
    if experts > 1:
        expected += 2 * 5 * 16 * experts  # two gates, five levels: 16 channels -> E logits
        pixels = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1
        expected += 2 * 36 * pixels  # two experts' box deltas, weighted and summed; classes are mixed without products
    assert macs == expected


def test_a_detector_without_plain_forward_has_no_count():
    model = detector().eval()

    def refuse(*args, **kwargs):
        raise NotImplementedError

    model._forward = refuse
    assert count_macs(model, batch([(64, 64)])) == (None, (64, 64))
    assert not find_routers(model)
