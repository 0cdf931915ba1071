"""A RetinaNet with experts on awkward batches: no objects, one image, odd sizes, top levels of one pixel."""

from __future__ import annotations

import pytest
import torch
from small_models import assert_same_detections, batch, detector, losses_of, predictions_of, spread_weights

SOFT = dict(type='KLConstraint', weight=0.25)
HARD = dict(type='RelativeImportanceConstraint', threshold=0.0)
BATCHES = {
    'no objects': (((64, 64), (64, 64)), (0, 0)),
    'one image': (((96, 64),), (2,)),
    'odd sizes': (((97, 131), (64, 33), (131, 97)), (3, 0, 1)),
    'one-pixel levels': (((32, 32), (32, 32)), (1, 2)),
    'one small image': (((32, 32),), (0,)),
}


@pytest.fixture(scope='module', params=['level', 'image', 'patch'])
def unit(request):
    return dict(unit='patch', grid=2) if request.param == 'patch' else dict(unit=request.param)


@pytest.fixture(scope='module', params=['hard', 'soft-per-level'])
def model(unit, request):
    """A detector with three experts, top-2; weights far from initialisation so that gates decide."""
    over = dict(balance_over='level' if request.param.endswith('level') else 'all')
    built = detector(dict(num_experts=3, **unit, **over, constraint=SOFT if 'soft' in request.param else HARD))
    spread_weights(built.bbox_head)
    return built


@pytest.mark.parametrize('name', BATCHES)
def test_trains_and_predicts(model, name):
    data = batch(*BATCHES[name])
    model.zero_grad()
    losses = losses_of(model, data)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(torch.isfinite(loss).all() for loss in losses.values()), losses
    assert losses['loss_cls'] > 0
    assert (losses['loss_bbox'] > 0) == any(BATCHES[name][1])
    soft = model.bbox_head.routers['cls'].noise is not None
    assert {key for key in losses if 'moe' in key} == ({'loss_moe_kl_cls', 'loss_moe_kl_reg'} if soft else set())
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and not key.startswith('backbone.layer1'):
            # idle experts have a zero gradient, not none: training goes on without find_unused_parameters
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
    for found in predictions_of(model, data):
        assert len(found) > 0
        assert torch.isfinite(found.bboxes).all() and torch.isfinite(found.scores).all()


def test_prediction_changes_no_buffer(model):
    losses_of(model, batch())  # so that a constraint's state is no longer zero
    before = {key: value.clone() for key, value in model.state_dict().items()}
    predictions_of(model, batch())
    with torch.no_grad():
        model.eval()
        model(**model.data_preprocessor(batch()), mode='loss')  # a validation loss
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_detections_of_an_image_do_not_depend_on_its_batch(model):
    sizes = [(64, 96)] * 3
    data = batch(sizes)
    together = predictions_of(model, data)
    assert len({round(float(found.scores.sum()), 4) for found in together}) == 3  # three different images
    for i, found in enumerate(together):
        alone = predictions_of(model, dict(inputs=[data['inputs'][i]], data_samples=[data['data_samples'][i]]))[0]
        assert_same_detections(alone, found)


def test_hard_constraint_moves_once_per_training_step():
    model = detector(dict(num_experts=3, top_k=2, constraint=HARD))
    state = model.bbox_head.routers['cls'].constraints['relative_importance'].relative
    assert state.abs().sum() == 0
    usage = {}
    model.bbox_head.branch_experts['cls'].register_forward_pre_hook(
        lambda _, args: usage.update(importance=args[1].over_experts(args[1].weights.detach(), 0.0).sum(0))
    )
    losses_of(model, batch())
    # two images and five levels: ten rows of weight 1 over three experts
    assert usage['importance'].sum().item() == pytest.approx(10, rel=1e-5)
    torch.testing.assert_close(state[0], usage['importance'] / (10 / 3) - 1)
    first = state.clone()
    predictions_of(model, batch())
    assert torch.equal(state, first)
