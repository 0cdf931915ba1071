"""Detections of DETR's family keep their query: recomputed from the head's outputs, they come out the same."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from small_models import (
    LAYER,
    SIDE_LOGIT,
    as_truth,
    batch,
    batch_for,
    build,
    detr_config,
    family,
    initialise,
    objects,
    planted_detr,
    predictions_of,
    spread_weights,
)

from moe_det.probing.losses import cannot_compute_losses, image_losses
from moe_det.probing.probe import Probe
from moe_det.probing.queries import (
    QueryRecorder,
    cannot_follow_queries,
    cannot_match_queries,
    matched_queries,
    query_layers,
)

LOSSES = ('loss_cls', 'loss_bbox', 'loss_iou')  # of the last decoder layer
FAMILIES = (
    'detr/detr_r50_8xb2-150e_coco.py',
    'dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    'deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
)


@pytest.fixture(scope='module')
def detr():
    return planted_detr(detr_config())


def followed(model, data):
    with QueryRecorder(model.bbox_head) as recorder:
        return recorder, predictions_of(model, data)


def best(recorder: QueryRecorder, results: list, count: int = 3) -> list[InstanceData]:
    """The best detections of each image, with boxes as their queries say them, not cut off at the border."""
    found = []
    for boxes, result in zip(recorder.outputs[1][-1], results, strict=True):
        top = result[:count]
        top.bboxes = bbox_cxcywh_to_xyxy(boxes[top.anchor]) * 64
        found.append(top)
    return found


@pytest.mark.parametrize('name', FAMILIES)
def test_score_and_box_follow_from_the_query(name):
    torch.manual_seed(0)
    model = spread_weights(initialise(build(family(name).model)))
    plain = predictions_of(model, batch_for(model))
    recorder, results = followed(model, batch_for(model))
    head, (scores, boxes) = model.bbox_head, recorder.outputs
    seen = set()
    for image, (found, without) in enumerate(zip(results, plain, strict=True)):
        torch.testing.assert_close(found.scores, without.scores)
        assert len(found) == 10 and set(found.level.tolist()) == {0}
        for i, query in enumerate(found.anchor.tolist()):
            seen.add(query)
            logits = scores[-1, image, query]
            score = logits.sigmoid() if head.loss_cls.use_sigmoid else logits.softmax(0)
            assert found.scores[i].item() == pytest.approx(score[found.labels[i]].item(), abs=1e-6)
            box = bbox_cxcywh_to_xyxy(boxes[-1, image, query]).mul(64).clamp(0, 64)
            torch.testing.assert_close(found.bboxes[i], box, atol=1e-3, rtol=0)
    assert len(seen) > 3  # else the query could be a constant
    assert 'anchor' not in predictions_of(model, batch_for(model))[0]


def test_a_ground_truth_is_matched_to_the_query_that_says_it(detr):
    recorder, results = followed(detr, batch())
    truths = best(recorder, results)
    boxes, labels = [top.bboxes for top in truths], [top.labels for top in truths]
    found = matched_queries(detr.bbox_head, recorder.outputs, boxes, labels, [{'img_shape': (64, 64)}] * 2)
    for ((queries, owners),), top in zip(found, truths, strict=True):
        assert dict(zip(owners.tolist(), queries.tolist(), strict=True)) == dict(enumerate(top.anchor.tolist()))


def test_rows_are_those_of_the_queries(detr):
    """The gate is planted on what the size of the box is made from: a row that were another's would give it away."""
    data = batch([(64, 64)] * 3)
    truths = [as_truth(top, 3 * number) for number, top in enumerate(best(*followed(detr, data)))]
    findings = Probe(detr)(range(3), data, truths)
    layer = findings.layers[LAYER]
    assert query_layers(detr) == [LAYER] and len(layer.weights) == 3 * 20
    areas = findings.detections[:, 3] * findings.detections[:, 4]
    small = layer.weights[layer.detection_rows].argmax(1) == 0
    limit = (64 / (1 + np.exp(-SIDE_LOGIT))) ** 2  # boxes may be cut off at the border
    assert small.any() and not small.all() and (areas[small] <= limit).all()
    assert areas[~small].max() > limit
    assert (layer.truth_rows == -1).all() and len(findings.positives) == 9
    matched = layer.positive_rows[np.argsort(findings.positives[:, 0])]
    own = np.concatenate([layer.detection_rows[10 * image : 10 * image + 3] for image in range(3)])
    np.testing.assert_array_equal(matched, own)
    assert layer.image_ids[own].tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_losses_of_single_images(detr):
    data = batch()
    recorder, _ = followed(detr, data)
    truths = [as_truth(objects(image)) for image in range(2)]
    found = image_losses(detr.bbox_head, recorder.outputs, truths, [{'img_shape': (64, 64)}] * 2)
    for image in range(2):
        alone = detr.data_preprocessor({key: value[image : image + 1] for key, value in batch().items()}, False)
        alone['data_samples'][0].gt_instances = objects(image)
        with torch.no_grad():
            losses = detr.loss(alone['inputs'], alone['data_samples'])
        assert found[image] == pytest.approx(sum(float(losses[name]) for name in LOSSES), rel=1e-4)
    assert cannot_compute_losses(detr.bbox_head) is None


def test_heads_that_choose_in_their_own_way(detr):
    class OwnHead(type(detr.bbox_head)):
        def _predict_by_feat_single(self, *args):
            return super()._predict_by_feat_single(*args)

    head = copy.copy(detr.bbox_head)
    head.__class__ = OwnHead
    assert cannot_follow_queries(head) == 'OwnHead chooses its detections in a way of its own'
    assert cannot_match_queries(head) is None
    del head.assigner
    assert 'no matcher' in cannot_match_queries(head)
