"""Asking about given anchors and queries: the answers are the head's own, and those of each expert its own."""

from __future__ import annotations

import pytest
import torch
from small_models import batch, build, detector, detr_config, family, planted_detr, spread_weights, with_experts
from torch import nn

from moe_det.attacks.rows import rows_of_detector
from moe_det.probing.opinions import cannot_ask, followed_detections, opinions
from moe_det.probing.queries import makes_queries
from moe_det.routing.intervention import intervene


def retinanet() -> nn.Module:
    torch.manual_seed(0)
    return spread_weights(detector(dict(num_experts=3, top_k=1, width=0.5))).eval()


def detr() -> nn.Module:
    return planted_detr(detr_config()).eval()


@pytest.fixture(params=[retinanet, detr], ids=['anchors', 'queries'])
def asked(request):
    """A detector, an image of which is resized by a half, and its sample."""
    model = request.param()
    data = batch([(64, 64)])
    data['data_samples'][0].set_metainfo({'scale_factor': (0.5, 0.5), 'ori_shape': (128, 128)})
    data = model.data_preprocessor(data, False)
    return model, data['inputs'], data['data_samples'][0]


def test_under_its_own_routing_a_detection_is_what_it_was(asked):
    model, inputs, sample = asked
    found, which = followed_detections(model, inputs, sample)
    scores, boxes = opinions(model, inputs, sample, which)
    assert len(scores) > 5
    torch.testing.assert_close(scores, found.scores)
    torch.testing.assert_close(boxes, found.bboxes, rtol=1e-4, atol=1e-3)


def test_an_expert_says_what_it_detects_where_it_is_forced(asked):
    model, inputs, sample = asked
    _, of_own = followed_detections(model, inputs, sample)
    before = opinions(model, inputs, sample, of_own)[0]
    changed = False
    for row in rows_of_detector('own', model, ('forced',)):
        with intervene(model, row.interventions):
            found, which = followed_detections(model, inputs, sample)
            scores, boxes = opinions(model, inputs, sample, which)
            changed |= not torch.allclose(opinions(model, inputs, sample, of_own)[0], before)
        torch.testing.assert_close(scores, found.scores)
        torch.testing.assert_close(boxes, found.bboxes, rtol=1e-4, atol=1e-3)
    after = opinions(model, inputs, sample, of_own)[0]
    torch.testing.assert_close(after, before)
    assert changed != makes_queries(model.bbox_head)  # the planted experts of the DETR do nothing


def test_two_stage_detectors_say_why_not():
    assert 'two-stage' in cannot_ask(nn.Module())
    assert cannot_ask(retinanet()) is None


@pytest.mark.parametrize(('where', 'changes'), [('decoder', False), ('encoder', True)])
def test_queries_that_start_from_proposals_must_stay_the_same_ones(where, changes):
    cfg = family('dino/dino-4scale_r50_8xb2-12e_coco.py').model
    experts = [{'modules': f'{where}.layers.*.ffn', 'type': 'MoEFFN', 'num_experts': 2, 'top_k': 1}]
    reason = cannot_ask(build(with_experts(cfg, experts)))
    if changes:
        assert reason == 'the experts in encoder.layers.0.ffn change the proposals that object queries start from'
    else:
        assert reason is None
