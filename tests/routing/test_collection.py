"""The hooks that make a detector add its layers' auxiliary losses to its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from moe_det.routing import KLConstraint, MeanImportanceConstraint, Router, ZLossConstraint
from moe_det.routing.collection import attach_collection, collect_losses


class Detector(nn.Module):
    """Two routers behind the interface of a detector."""

    def __init__(self, gate_class) -> None:
        super().__init__()
        settings = {'top_k': 2, 'noise': False}
        self.first = Router(gate_class(3, 3), [KLConstraint(), MeanImportanceConstraint()], **settings).double()
        self.second = Router(gate_class(3, 3), [KLConstraint(), ZLossConstraint()], **settings).double()
        self.route = None
        self.collects = False  # the second router

    def forward(self, maps, mode):
        weights = [self.route(router, maps).weights for router in (self.first, self.second)]
        if mode != 'loss':
            return weights
        losses = {f'loss_second_{key}': loss for key, loss in self.second.collect().items()} if self.collects else {}
        return {'loss_cls': sum((w[:, 0] ** 2).sum() for w in weights), **losses}


@pytest.fixture
def detector(echo_gate, route_rows) -> nn.Module:
    """A detector in training, without the hook."""
    model = Detector(echo_gate).train()
    model.route = route_rows
    return model


def test_collection_adds_the_losses_to_the_detectors(detector, as_maps):
    maps = as_maps(torch.randn(5, 3))
    handles = attach_collection(detector)
    losses = detector(maps, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_moe_kl', 'loss_moe_z'}
    sum(losses.values()).backward()
    assert detector.first.constraints['mean_importance'].steps.item() == 1
    # the sum over the layers
    for router in (detector.first, detector.second):
        detector.route(router, maps)
    detector.first.constraints['mean_importance'].mean.zero_()
    alone = [detector.first.collect()['kl'], detector.second.collect()['kl']]
    torch.testing.assert_close(losses['loss_moe_kl'], sum(alone))
    for handle in handles:
        handle.remove()
    assert set(detector(maps, mode='loss')) == {'loss_cls'}


def test_collection_leaves_other_modes_and_owners_alone(detector, as_maps):
    attach_collection(detector)
    detector.collects = True
    # exp(logits) = (1, 2, 4): I = (0, 1/3, 2/3) times the rows, so KL = log 3 - H(1/3, 2/3)
    maps = as_maps(torch.tensor([[1.0, 2, 4]] * 5).log())
    detector(as_maps([[9.0, 0.0, 0.0]] * 20), mode='tensor')  # a forward in training mode that is never trained on
    losses = detector(maps, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_moe_kl', 'loss_second_kl', 'loss_second_z'}
    expected = 0.25 * sum(p * math.log(3 * p) for p in (1 / 3, 2 / 3))
    assert losses['loss_moe_kl'].item() == pytest.approx(expected)
    sum(losses.values()).backward()
    assert isinstance(detector.eval()(maps, mode='predict'), list)
    assert detector.first.constraints['mean_importance'].steps.item() == 1
    assert collect_losses([detector.first]) == {}
