"""Detections of two-stage detectors keep their region of interest: recomputed from it, they come out the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.structures.bbox import bbox_overlaps
from small_models import as_truth, batch, batch_for, build, family, initialise, predictions_of, spread_weights
from small_regions import FASTER, FINEST, LAYER, boxes_are_regions, faster_config, gates_told, within_level

from moe_det.errors import MoEConfigError
from moe_det.probing.findings import NO_ROW
from moe_det.probing.following import following
from moe_det.probing.layer_description import layer_infos
from moe_det.probing.places import Truth
from moe_det.probing.probe import Probe
from moe_det.probing.regions import RegionRecorder, best_regions, cannot_follow_regions, last_box_head, region_extractor
from moe_det.probing.swaps import swap_conditions, swap_donors

FAMILIES = (FASTER, 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')


@pytest.mark.parametrize('name', FAMILIES)
def test_score_and_box_follow_from_the_region(name, monkeypatch):
    cfg = family(name).model
    extractor = cfg.roi_head.bbox_roi_extractor
    extractor.finest_scale = FINEST
    model = spread_weights(initialise(build(cfg))).eval()
    plain = predictions_of(model, batch_for(model))
    head = last_box_head(model.roi_head)
    given = []
    original = BBoxHead._predict_by_feat_single
    monkeypatch.setattr(BBoxHead, '_predict_by_feat_single', lambda *a, **k: given.append(k) or original(*a, **k))
    with RegionRecorder(model.roi_head, region_extractor(model)) as recorder:
        results = predictions_of(model, batch_for(model))
    seen = set()
    for found, without, by_region, regions in zip(results, plain, given, recorder.regions, strict=True):
        torch.testing.assert_close(found.scores, without.scores)
        assert len(found.anchor) == len(found.scores) > 3
        boxes = head.bbox_coder.decode(
            regions.repeat_interleave(1 if head.reg_class_agnostic else head.num_classes, 0),
            by_region['bbox_pred'].reshape(-1, 4),
            max_shape=(64, 64),
        ).reshape(len(regions), -1, 4)
        for i, number in enumerate(found.anchor.tolist()):
            seen.add(number)
            label = int(found.labels[i])
            score = by_region['cls_score'].softmax(1)[number, label]
            assert found.scores[i].item() == pytest.approx(score.item(), abs=1e-6)
            box = boxes[number, 0 if head.reg_class_agnostic else label]
            torch.testing.assert_close(found.bboxes[i], box, atol=1e-3, rtol=0)
            x1, y1, x2, y2 = regions[number].tolist()
            side = max(0.01, (x2 - x1) * (y2 - y1)) ** 0.5
            assert int(found.level[i]) == min(3, max(0, int(np.floor(np.log2(side / FINEST + 1e-6)))))
    assert len(seen) > 3
    assert 'anchor' not in predictions_of(model, batch_for(model))[0]


def truths_of(results: list, count: int = 3) -> list[Truth]:
    """Some detections of each image as ground truths, which overlap little."""
    return [as_truth(found[:count], count * image) for image, found in enumerate(results)]


def test_rows_are_those_of_the_regions(monkeypatch):
    """The gate is planted on the size of the region: a row that were another's would give it away."""
    model = boxes_are_regions(faster_config())
    data = batch([(64, 64)] * 3)
    with gates_told(within_level, monkeypatch):
        truths = truths_of(predictions_of(model, data))
        findings = Probe(model)(range(3), data, truths)
    layer = findings.layers[LAYER]
    assert [(info.name, info.unit) for info in layer_infos(model)] == [(LAYER, 'roi')]
    sides = np.sqrt(findings.detections[:, 3] * findings.detections[:, 4])
    levels = findings.detection_levels
    assert len(np.unique(levels)) > 1
    above = np.log2(sides / FINEST) - levels - 0.5
    clear = np.abs(above) > 0.01
    expert = layer.weights[layer.detection_rows].argmax(1)
    np.testing.assert_array_equal(expert[clear], (above > 0)[clear])
    assert 0 < expert[clear].mean() < 1
    np.testing.assert_array_equal(layer.levels[layer.detection_rows], levels)
    np.testing.assert_array_equal(layer.image_ids[layer.detection_rows], findings.detections[:, 0])
    assert (layer.truth_rows == NO_ROW).all()
    # an object that is a detection's box is that detection's region
    np.testing.assert_array_equal(findings.positives[:, 0], np.arange(9))
    for image in range(3):
        first = int(np.flatnonzero(findings.detections[:, 0] == image)[0])
        own = layer.positive_rows[3 * image : 3 * image + 3]
        np.testing.assert_array_equal(layer.levels[own], levels[first : first + 3])
        np.testing.assert_array_equal(layer.weights[own].argmax(1), expert[first : first + 3])


def test_an_object_stands_for_the_region_that_overlaps_it_by_half():
    regions = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [40, 40, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 11], [0, 0, 10, 18], [40, 40, 50, 59], [0, 0, 60, 60]])
    assert best_regions(regions, boxes).tolist() == [0, 1, NO_ROW, NO_ROW]  # 10/11, 18/20, 190/400, 400/3600
    assert bbox_overlaps(boxes[2:3], regions).max() == pytest.approx(190 / 400)
    assert best_regions(regions[:0], boxes).tolist() == [NO_ROW] * 4


def test_other_images_regions_of_the_same_level_decide(monkeypatch):
    model = boxes_are_regions(faster_config())
    data = batch([(64, 64)] * 4)
    with gates_told(within_level, monkeypatch):
        truths = truths_of(predictions_of(model, data))
        findings = Probe(model)(range(4), data, truths)
        infos = layer_infos(model)
        donors = swap_donors(findings, infos, np.full(4, 3), draws=1, seed=0)
        conditions = swap_conditions(findings, infos, donors, seed=0)
        assert [c.name for c in conditions] == [f'{LAYER}/swap/0', f'{LAYER}/route/0', f'{LAYER}/route/1']
        decided = []
        router = model.get_submodule(LAYER).router
        second = Probe(model, conditions[:1], rows=False)
        router.decided.observe(lambda routing, layout: decided.append((routing.indices[:, 0], layout)))
        second(range(4), data, truths)
    (_, layout), (experts, again) = decided
    layer = findings.layers[LAYER]
    assert torch.equal(layout.images(), again.images())
    # in each image and level the experts come as often as with the donor, if it has as many regions there
    compared = 0
    for image, donor in enumerate(donors[0]):
        for level in range(4):
            own = (again.images() == image) & (again.levels() == level)
            theirs = (layer.image_ids == donor) & (layer.levels == level)
            if int(own.sum()) == theirs.sum() > 0:
                expected = layer.weights[theirs].argmax(1)[np.argsort(layer.patches[theirs])]
                np.testing.assert_array_equal(experts[own].numpy(), expected)
                compared += 1
    assert compared and (donors[0] != np.arange(4)).all()


def test_heads_that_choose_in_their_own_way():
    model = build(faster_config().model)
    head = model.roi_head.bbox_head

    class OwnHead(type(head)):
        def _predict_by_feat_single(self, *args, **kwargs):
            return super()._predict_by_feat_single(*args, **kwargs)

    assert cannot_follow_regions(model.roi_head) is None
    head.__class__ = OwnHead
    assert cannot_follow_regions(model.roi_head) == 'OwnHead chooses its detections in a way of its own'
    with pytest.raises(MoEConfigError, match=f'{LAYER}: decides about regions of interest, .* OwnHead'):
        layer_infos(model)
    assert following(model).no_provenance is not None
