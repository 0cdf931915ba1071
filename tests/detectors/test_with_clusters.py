"""A detector whose frozen backbone tells the clusters of its images, and the command that finds them."""

from __future__ import annotations

import copy
import pickle

import moe_det.registry  # noqa: F401 - first: supplies the operators that mmdet's import needs

# isort: split
import pytest
import torch
from small_models import RETINANET, batch, build, config, initialise, losses_of, predictions_of, records_of, shrink

from moe_det.common.dense_counterpart import dense_counterpart
from moe_det.errors import MoEConfigError
from moe_det.routing import find_routers
from moe_det.routing.gates import global_average

CHANNELS = 64  # of the last map


def model_cfg(**changes) -> dict:
    cfg = config(f"_base_ = '{RETINANET}'")
    cfg.model.backbone.depth = 18
    shrink(cfg)
    constraint = [dict(type='ClusterMask', clusters=2, channels=CHANNELS), dict(type='KLConstraint')]
    moe = dict(num_experts=4, top_k=2, constraint=constraint, noise=False)
    cfg.model.bbox_head.update(type='MoERetinaHead', moe=moe, stacked_convs=1)
    cfg.model.backbone.frozen_stages = 4
    return {**cfg.model.to_dict(), 'type': 'WithClusters', 'model': 'RetinaNet', **changes}


def planted() -> torch.nn.Module:
    """A detector whose centroids are the features of the two images of ``batch()``."""
    torch.manual_seed(0)
    model = initialise(build(model_cfg())).eval()
    inputs = model.data_preprocessor(copy.deepcopy(batch()), False)['inputs']
    with torch.no_grad():
        features = global_average(model.backbone(inputs)[-1])
    for router in find_routers(model).values():
        router.constraints['cluster'].fill(features)
    return model


def groups(model: torch.nn.Module, data: dict) -> dict[int, set[int]]:
    """Groups of experts that rows of each image run."""
    found: dict[int, set[int]] = {}
    for record in records_of(model, range(len(data['inputs'])), predictions_of, model, data):
        for image, weights in zip(record.image_ids.tolist(), record.weights, strict=True):
            found.setdefault(image, set()).update((weights.nonzero()[:, 0] // 2).tolist())
    return found


def test_every_image_runs_its_clusters_experts_at_all_levels_and_in_both_branches():
    model, data = planted(), batch()
    assert groups(model, copy.deepcopy(data)) == {0: {0}, 1: {1}}
    swapped = {key: values[::-1] for key, values in copy.deepcopy(data).items()}
    assert groups(model, swapped) == {0: {1}, 1: {0}}
    # copies tell their own constraints
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    for router in find_routers(model).values():
        router.constraints['cluster'].centroids.zero_()
    assert groups(twin, copy.deepcopy(data)) == {0: {0}, 1: {1}}


def test_it_trains_with_a_balance_that_reaches_the_gates():
    model = planted()
    losses = losses_of(model, batch())
    (losses['loss_moe_kl_cls'] + losses['loss_moe_kl_reg']).backward()
    for router in find_routers(model).values():
        assert router.gate.fc.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.backbone.parameters())


def test_the_dense_counterpart_is_the_plain_detector():
    plain, _ = dense_counterpart(model_cfg())
    assert plain['type'] == 'RetinaNet' and plain['bbox_head']['type'] == 'RetinaHead' and 'model' not in plain


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(model='RetinaNett'), "unknown model 'RetinaNett'.*Did you mean 'RetinaNet'"),
        (dict(backbone=dict(frozen_stages=1)), 'parameters would be trained.*frozen_stages=4'),
        (dict(bbox_head=dict(moe=dict(constraint=None))), "no layer has constraint=dict.type='ClusterMask'"),
    ],
)
def test_a_config_that_cannot_work_is_one_message(changes, message):
    cfg = model_cfg()
    for key, values in changes.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            part = cfg[key].setdefault(name, {}) if isinstance(value, dict) else cfg[key]
            part.update(value if isinstance(value, dict) else {name: value})
        if not isinstance(values, dict):
            cfg[key] = values
    with pytest.raises(MoEConfigError, match=message):
        build(cfg)
