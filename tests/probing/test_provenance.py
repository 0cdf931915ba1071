"""Detections and positives keep their anchor: recomputed from the head's outputs, they come out the same."""

from __future__ import annotations

import pytest
import torch
from mmdet.structures.bbox import bbox_overlaps, scale_boxes
from mmengine.config import ConfigDict
from small_models import (
    CLASSES,
    batch,
    build,
    config,
    head,
    initialise,
    metas,
    objects,
    pyramid,
    shrink,
    spread_weights,
)

from moe_det.probing.assignment import AssignmentError, cannot_assign, positive_anchors
from moe_det.probing.provenance import ProvenanceRecorder, locations

MOE = dict(num_experts=3, top_k=2, constraint=dict(type='KLConstraint', weight=0.25))


def follow(dense_head, maps, score_thr: float, **test_cfg):
    cfg = ConfigDict(dense_head.test_cfg, score_thr=score_thr, **test_cfg)
    infos = [dict(meta, scale_factor=(2.0, 0.5)) for meta in metas(len(maps[0]))]
    with torch.no_grad(), ProvenanceRecorder(dense_head) as recorder:
        results = dense_head.predict_by_feat(*dense_head(tuple(maps)), batch_img_metas=infos, cfg=cfg, rescale=True)
    return recorder, results


@pytest.mark.parametrize('moe', [None, MOE], ids=['dense', 'moe'])
@pytest.mark.parametrize('limits', [dict(), dict(nms_pre=7, max_per_img=5)], ids=['plain', 'small limits'])
def test_score_and_box_follow_from_the_anchor(moe, limits):
    torch.manual_seed(0)
    dense_head = spread_weights(initialise(head(moe))).eval()
    maps = pyramid()
    recorder, results = follow(dense_head, maps, 0.3, **limits)
    scores, deltas = recorder.outputs[0], recorder.outputs[1]
    priors = dense_head.prior_generator.grid_priors(recorder.map_sizes, device='cpu')
    levels = set()
    for image, found in enumerate(results):
        assert len(found) > 0
        for i in range(len(found)):
            level, anchor = int(found.level[i]), int(found.anchor[i])
            levels.add(level)
            at = scores[level][image].permute(1, 2, 0).reshape(-1, CLASSES)[anchor].sigmoid()
            assert found.scores[i].item() == pytest.approx(at[found.labels[i]].item(), abs=1e-6)
            delta = deltas[level][image].permute(1, 2, 0).reshape(-1, 4)[anchor]
            box = dense_head.bbox_coder.decode(priors[level][anchor][None], delta[None], max_shape=(64, 64))
            torch.testing.assert_close(found.bboxes[i], scale_boxes(box, (0.5, 2.0))[0])
    assert len(levels) > 1  # else the level could be a constant


def test_location_is_the_cell_below_the_anchors_centre():
    dense_head = head()
    sizes = [(8, 6), (4, 3), (2, 2), (1, 1), (1, 1)]
    for level, priors in enumerate(dense_head.prior_generator.grid_priors(sizes, device='cpu')):
        row, column = locations(dense_head, level, torch.arange(len(priors)), sizes[level][1])
        stride = dense_head.prior_generator.strides[level][0]
        centres = (priors[:, :2] + priors[:, 2:]) / 2
        torch.testing.assert_close(torch.stack([column, row], 1) * float(stride), centres, atol=1e-3, rtol=0)


def test_the_head_is_as_before_afterwards():
    dense_head = spread_weights(initialise(head(MOE))).eval()
    maps = pyramid()
    plain = dense_head.predict_by_feat(*dense_head(tuple(maps)), batch_img_metas=metas(2))
    _, followed = follow(dense_head, maps, 0.05)
    again = dense_head.predict_by_feat(*dense_head(tuple(maps)), batch_img_metas=metas(2))
    assert 'level' not in plain[0] and 'level' not in again[0]
    torch.testing.assert_close(followed[0].scores, plain[0].scores)
    torch.testing.assert_close(again[0].bboxes, plain[0].bboxes)


@pytest.mark.parametrize('base', ['fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'atss/atss_r50_fpn_1x_coco.py'])
def test_other_heads_of_mmdet_can_be_followed(base):
    cfg = shrink(config(f"_base_ = 'mmdet::{base}'"), channels=32)
    model = spread_weights(initialise(build(cfg.model))).eval()
    data = model.data_preprocessor(batch(), False)
    with torch.no_grad(), ProvenanceRecorder(model.bbox_head) as recorder:
        samples = model.predict(data['inputs'], data['data_samples'])
    scores, factors = recorder.outputs[0], recorder.outputs[2]
    for image, sample in enumerate(samples):
        found = sample.pred_instances
        assert len(found) > 0
        for i in range(len(found)):
            level, anchor = int(found.level[i]), int(found.anchor[i])
            score = scores[level][image].permute(1, 2, 0).reshape(-1, CLASSES)[anchor, found.labels[i]].sigmoid()
            factor = factors[level][image].permute(1, 2, 0).reshape(-1)[anchor].sigmoid()
            assert found.scores[i].item() == pytest.approx((score * factor).item(), abs=1e-5)


# -- positives ---------------------------------------------------------------------------------------------------


def test_positives_are_the_anchors_that_overlap_by_half_or_most():
    dense_head = initialise(head(MOE)).eval()
    maps = tuple(pyramid())
    truths = [objects(i) for i in range(2)]
    infos = [dict(meta, batch_input_shape=(64, 64), pad_shape=(48, 64)) for meta in metas(2)]
    outputs = dense_head(maps)
    found = positive_anchors(dense_head, outputs, [t.bboxes for t in truths], [t.labels for t in truths], infos)
    priors = dense_head.prior_generator.grid_priors([tuple(s.shape[-2:]) for s in outputs[0]], device='cpu')
    every = torch.cat(priors)
    for truth, per_level in zip(truths, found, strict=True):
        # RetinaNet, section 4: an anchor belongs to the box that it overlaps most if by 0.5 or more; each box gets
        # at least the anchors that overlap it most
        overlaps = bbox_overlaps(truth.bboxes, every)
        best, owner = overlaps.max(0)
        owner[best < 0.5] = -1
        for number, row in enumerate(overlaps):
            owner[row == row.max()] = number
        got = torch.full_like(owner, -1)
        first = 0
        for level, (anchors, numbers) in enumerate(per_level):
            got[first + anchors] = numbers
            first += len(priors[level])
        torch.testing.assert_close(got, owner)
        assert (owner >= 0).sum() > 3


def test_heads_without_an_assigner_of_anchors():
    cfg = shrink(config("_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'"), channels=32)
    assert 'assigner' in cannot_assign(build(cfg.model).bbox_head)


def test_an_assigner_that_sees_fewer_anchors_is_refused():
    dense_head = initialise(head(MOE)).eval()
    dense_head.train_cfg.allowed_border = 0
    assert 'allowed_border=0' in cannot_assign(dense_head)
    truth = objects(0)
    infos = [dict(meta, batch_input_shape=(64, 64)) for meta in metas(1)]
    with pytest.raises(AssignmentError, match='expected all'):
        positive_anchors(dense_head, dense_head(tuple(pyramid(1))), [truth.bboxes], [truth.labels], infos)
