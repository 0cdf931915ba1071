"""Probing a detector: conditions are plain evaluations, rows are those that the gates decided about."""

from __future__ import annotations

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch
from small_files import coco_content
from small_models import as_truth, batch, build, config, detector, initialise, shrink, spread_weights, with_experts

from moe_det.analysis.ground_truth import GroundTruth
from moe_det.analysis.units import NO_ROW
from moe_det.common.share import Share
from moe_det.errors import DataError
from moe_det.probing.conditions import Condition, conditions_of, forced, knocked_out, swept
from moe_det.probing.findings import Findings, join
from moe_det.probing.places import Truth
from moe_det.probing.probe import Probe
from moe_det.probing.run import PartStore, probe_images, truths_of
from moe_det.routing import RoutingRecorder, find_routers
from moe_det.routing.intervention import Intervention, intervene

MOE = dict(num_experts=3, top_k=2, constraint=dict(type='KLConstraint', weight=0.25))
CATEGORIES = [4, 7, 9]
SIZES = [(64, 96), (96, 64), (64, 64)]
IDS = [11, 22, 33]


def moe_detector(**changes):
    torch.manual_seed(0)
    model = spread_weights(detector({**MOE, **changes})).eval()
    model.bbox_head.test_cfg.score_thr = 0.3
    return model


def ground_truth(tmp_path, data):
    """The batch's objects as a COCO json, and one crowd."""
    truths = [as_truth(sample.gt_instances) for sample in data['data_samples']]
    objects = [
        (ident, CATEGORIES[label], box)
        for ident, truth in zip(IDS, truths, strict=True)
        for label, box in zip(truth.labels, truth.boxes.tolist(), strict=True)
    ]
    content = coco_content(objects, IDS, {ident: str(ident) for ident in CATEGORIES}, (96, 96))
    content['annotations'].append({**content['annotations'][0], 'id': 99, 'iscrowd': 1})
    path = tmp_path / 'truth.json'
    path.write_text(json.dumps(content))
    return GroundTruth(path, IDS, CATEGORIES)


def probe_once(model, truth, data, conditions=(), **more):
    return Probe(model, conditions, **more)(range(3), data, truths_of(truth, range(3)))


def table(model, data):
    """Detections of a plain test step, as the findings write them, without the levels."""
    with torch.no_grad():
        samples = model.test_step(data)
    rows = []
    for image, sample in enumerate(samples):
        found = sample.pred_instances
        for box, score, label in zip(found.bboxes, found.scores, found.labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            rows.append([image, x1, y1, x2 - x1, y2 - y1, score.item(), int(label)])
    return np.array(rows)


HEADS = {
    'level': {},
    'image': dict(unit='image'),
    'patch': dict(unit='patch', grid=2),
    'top-1': dict(top_k=1),
    'tower': dict(placement='tower'),
    'shards': dict(placement='shards', shards=2, copies=2, num_experts=4),
    'shared expert': dict(shared_expert=True),
    'attentive': dict(gate=dict(type='AttentiveGate', hidden_channels=8), noise=False),
    'expert choice': dict(placement='tower', unit='patch', grid=2, top_k=3, rows_per_expert=2, shared_expert=True),
}


@pytest.mark.parametrize('place', [*HEADS, 'backbone'])
def test_every_condition_is_a_plain_test_under_that_routing(tmp_path, place):
    if place in HEADS:
        model = moe_detector(**HEADS[place])
    else:
        torch.manual_seed(0)
        stages = dict(stages=(3,), **MOE)
        model = spread_weights(detector(None, backbone=dict(type='MoEResNet', moe=stages))).eval()
        model.bbox_head.test_cfg.score_thr = 0.3
    data = batch(SIZES)
    conditions = conditions_of(model)
    found = probe_once(model, ground_truth(tmp_path, data), data, conditions)
    # beside other routings, shards are added up one by one and not merged: rounding of another order
    same = dict(rtol=1e-4, atol=1e-3) if place == 'shards' else dict(rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.detections[:, :7], table(model, data), **same)
    different = 0
    for condition in conditions:
        with intervene(model, condition.interventions):
            expected = table(model, data)
        np.testing.assert_allclose(found.conditions[condition.name][:, :7], expected, **same)
        natural = found.detections[:, :7]
        different += expected.shape != natural.shape or not np.allclose(expected, natural, atol=1e-3)
    assert different >= len(conditions) - 2 > 0  # to knock out an expert that no row chose changes nothing


@pytest.mark.parametrize('place', ['level', 'patch', 'attentive'])
def test_experts_of_the_head_run_once_for_all_conditions(tmp_path, place):
    model = moe_detector(**HEADS[place])
    calls = []
    for group in model.bbox_head.branch_experts.values():
        for expert in group.experts:
            expert.register_forward_hook(lambda *_: calls.append(1))
    data = batch(SIZES)
    conditions = conditions_of(model)
    probe_once(model, ground_truth(tmp_path, data), data, conditions)
    assert len(calls) == 2 * 3 * 5  # branches, experts, levels
    calls.clear()
    with intervene(model, conditions[0].interventions):
        table(model, data)
        table(model, data)
    first = len(calls)
    table(model, data)
    assert len(calls) > first  # nothing is kept afterwards


def test_names_and_number_of_conditions():
    model = moe_detector()
    names = [condition.name for condition in conditions_of(model)]
    layers = ['bbox_head.cls', 'bbox_head.reg']
    expected = [make(layer, e) for layer in layers for make in (forced, knocked_out) for e in range(3)]
    assert sorted(names) == sorted([*expected, swept(1), swept(3)])  # the trained K = 2 is no condition
    only = conditions_of(model, ['bbox_head.reg'])
    assert {c.name for c in only} == {n for n in names if 'cls' not in n}
    assert all(condition.keeps_features for condition in only)


def test_shards_have_their_number_of_experts_in_every_condition():
    stages = dict(stages=(3,), **MOE)
    model = detector(dict(placement='shards', shards=2, copies=2), backbone=dict(type='MoEResNet', moe=stages))
    assert {make('bbox_head.cls', e) for make in (forced, knocked_out) for e in range(4)} == {
        condition.name for condition in conditions_of(model, ['bbox_head.cls']) if 'top_k' not in condition.name
    }
    sweep = [condition for condition in conditions_of(model) if 'top_k' in condition.name]
    assert [condition.name for condition in sweep] == [swept(1), swept(3)]  # of the other layer, which was trained at 2
    assert all(set(condition.interventions) == {'backbone.layer3'} for condition in sweep)


@pytest.mark.parametrize('place', ['level', 'image', 'patch', 'attentive'])
def test_features_are_what_a_linear_gate_decides_from(tmp_path, place):
    """The gate's own linear layer, applied to the recorded features, gives its probabilities again."""
    model = moe_detector(**HEADS[place])
    data = batch(SIZES)
    found = probe_once(model, ground_truth(tmp_path, data), data)
    for name, router in find_routers(model).items():
        layer = found.layers[name]
        assert layer.features.shape == (len(layer.image_ids), 16) and layer.features.dtype == np.float32
        if place == 'attentive':  # its experts decide with it
            continue
        with torch.no_grad():
            probs = torch.softmax(router.gate.fc(torch.from_numpy(layer.features)), dim=1)
        np.testing.assert_allclose(layer.probs, probs, atol=1e-4)


def test_losses_are_those_of_training_on_the_image_alone(tmp_path):
    model = moe_detector()
    data = batch(SIZES)
    route = {'bbox_head.cls': Intervention(forced=(0, 2))}
    other = Condition('other', route, losses=True)
    found = probe_once(model, ground_truth(tmp_path, data), data, [*conditions_of(model)[:1], other])
    assert found.losses.keys() == {'natural', 'other'}
    for name, interventions in (('natural', {}), ('other', route)):
        whole = model.data_preprocessor(data)  # padded as the batch is, so that the gate's averages are the same
        for i, sample in enumerate(whole['data_samples']):
            with torch.no_grad(), intervene(model, interventions):
                losses = model.loss(whole['inputs'][i : i + 1], [sample])
            expected = sum(float(sum(part)) for key, part in losses.items() if 'moe' not in key)
            assert found.losses[name][i] == pytest.approx(expected, rel=1e-4)
    assert abs(found.losses['other'] - found.losses['natural']).min() > 1e-3
    assert not probe_once(model, ground_truth(tmp_path, data), data, conditions_of(model)[:1]).losses


def test_a_second_pass_keeps_no_rows(tmp_path):
    model = moe_detector()
    data = batch(SIZES)
    truth = ground_truth(tmp_path, data)
    conditions = conditions_of(model)[:2]
    first, second = (probe_once(model, truth, data, conditions, rows=rows) for rows in (True, False))
    assert not second.layers and len(second.positives) == 0
    np.testing.assert_array_equal(second.detections, first.detections)
    for name in second.conditions:
        np.testing.assert_array_equal(second.conditions[name], first.conditions[name])


@pytest.mark.parametrize('unit', ['level', 'image', 'patch'])
def test_detections_and_positives_find_the_row_that_decided(tmp_path, unit):
    model = moe_detector(unit=unit, **(dict(grid=2) if unit == 'patch' else {}))
    data = batch(SIZES)
    truth = ground_truth(tmp_path, data)
    found = probe_once(model, truth, data, grids={'bbox_head.cls': 2, 'bbox_head.reg': 2} if unit == 'patch' else None)
    with RoutingRecorder(model) as recorder:
        recorder.start_batch(range(3))
        table(model, data)
    height = width = 96  # the batch's padded size, stride 32 -> 96
    strides = [8, 16, 32, 64, 128]
    for record in recorder.records:
        layer = found.layers[record.layer]
        np.testing.assert_allclose(layer.weights, record.weights.numpy(), atol=1e-5)
        assert layer.image_ids.tolist() == record.image_ids.tolist()
        if unit == 'image':
            assert (layer.detection_rows == -1).all()
            rows = layer.truth_rows
            assert layer.image_ids[rows].tolist() == truth.objects.image_ids.tolist()
            continue
        assert (layer.truth_rows == -1).all() and len(layer.detection_rows) > 5
        rows = layer.detection_rows
        assert layer.image_ids[rows].tolist() == found.detections[:, 0].tolist()
        assert layer.levels[rows].tolist() == found.detection_levels.tolist()
        assert layer.levels[layer.positive_rows].tolist() == found.positives[:, 1].tolist()
        owners = truth.objects.image_ids[found.positives[:, 0]]
        assert layer.image_ids[layer.positive_rows].tolist() == owners.tolist()
        if unit == 'patch':
            # a positive anchor of a small object lies near it: its patch must hold a point within a stride or so
            for row, (number, level) in zip(layer.positive_rows, found.positives, strict=True):
                sides = [math.ceil(x / strides[level]) for x in (height, width)]
                if min(sides) < 2:
                    continue
                y_cell, x_cell = divmod(layer.patches[row], 2)
                x, y, w, h = truth.objects.boxes[number]
                for low, extent, cell, side in ((y, h, y_cell, sides[0]), (x, w, x_cell, sides[1])):
                    border = (side // 2) * strides[level]
                    assert low - strides[level] < border if cell == 0 else low + extent + strides[level] > border
    if unit == 'patch':
        assert len(np.unique(layer.patches[layer.positive_rows])) > 1


def test_positives_belong_to_objects_without_crowds(tmp_path):
    model = moe_detector()
    data = batch(SIZES)
    truth = ground_truth(tmp_path, data)
    found = probe_once(model, truth, data)
    assert set(found.positives[:, 0].tolist()) == set(found.truths.tolist()) == set(range(6))
    assert truth.annotation_ids == [1, 2, 3, 4, 5, 6]  # 99 is the crowd


def findings_equal(a: Findings, b: Findings) -> None:
    for name in ('image_ids', 'detections', 'detection_levels', 'truths', 'positives'):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ('layers', 'conditions', 'losses'):
        assert getattr(a, name).keys() == getattr(b, name).keys()
    for name in a.layers:
        for field in vars(a.layers[name]):
            np.testing.assert_array_equal(getattr(a.layers[name], field), getattr(b.layers[name], field))
    for name in a.conditions:
        np.testing.assert_array_equal(a.conditions[name], b.conditions[name])
    for name in a.losses:
        np.testing.assert_array_equal(a.losses[name], b.losses[name])


def test_findings_survive_the_disk_and_joined_rows_stay_true(tmp_path):
    model = moe_detector()
    data = batch(SIZES)
    truth = ground_truth(tmp_path, data)
    both = Condition('both', {'bbox_head.cls': Intervention(forced=(0, 1))}, losses=True)
    conditions = [*conditions_of(model)[:2], both]
    whole = probe_once(model, truth, data, conditions)
    whole.save(tmp_path / 'part.npz')
    findings_equal(Findings.load(tmp_path / 'part.npz'), whole)
    double = join([whole, whole])
    layer = double.layers['bbox_head.cls']
    assert layer.image_ids[layer.detection_rows].tolist() == double.detections[:, 0].tolist()
    assert layer.detection_rows.max() > len(whole.layers['bbox_head.cls'].image_ids)


class Batches:
    """Single images, and an interruption after some of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.data = batch(SIZES)

    def __len__(self):
        return 30

    def select(self, numbers):
        for number in numbers:
            if number == self.stop:
                raise KeyboardInterrupt
            i = number % 3
            sample = self.data['data_samples'][i].clone()
            yield [100 + number], dict(inputs=[self.data['inputs'][i]], data_samples=[sample])


def many_images(tmp_path):
    ground_truth(tmp_path, batch(SIZES))
    content = json.loads((tmp_path / 'truth.json').read_text())
    images = [dict(content['images'][i % 3], id=100 + i) for i in range(30)]
    annotations = []
    for image in range(30):
        for a in content['annotations']:
            if a['image_id'] == IDS[image % 3]:
                annotations.append({**a, 'id': len(annotations) + 1, 'image_id': 100 + image})
    path = tmp_path / 'many.json'
    path.write_text(json.dumps(dict(content, images=images, annotations=annotations)))
    with contextlib.redirect_stdout(io.StringIO()):
        return GroundTruth(path, [100 + i for i in range(30)], CATEGORIES)


def test_an_interrupted_run_goes_on_and_finds_the_same(tmp_path):
    model = moe_detector()
    truth = many_images(tmp_path)
    probe = Probe(model, conditions_of(model)[:1])
    expected = probe_images(probe, Batches(), truth)
    store = PartStore(tmp_path / 'parts', dict(question=1))
    with pytest.raises(KeyboardInterrupt):
        probe_images(probe, Batches(stop=19), truth, store)
    assert [p.name for p in sorted((tmp_path / 'parts').glob('*.npz'))] == ['part_00000.npz', 'part_00001.npz']

    class Counting(Probe):
        calls = 0

        def __call__(self, *args):
            Counting.calls += 1
            return super().__call__(*args)

    store = PartStore(tmp_path / 'parts', dict(question=1))
    again = probe_images(Counting(model, conditions_of(model)[:1]), Batches(), truth, store)
    findings_equal(again, expected)
    assert Counting.calls == 30 - 16
    (tmp_path / 'parts/part_00001.npz').write_bytes(b'damaged')
    findings_equal(probe_images(probe, Batches(), truth, store), expected)
    PartStore(tmp_path / 'parts', dict(question=2))
    assert not list((tmp_path / 'parts').glob('*.npz'))


def test_several_processes_find_what_one_finds(tmp_path):
    model = moe_detector()
    truth = many_images(tmp_path)
    probe = Probe(model, conditions_of(model)[:1])
    expected = probe_images(probe, Batches(), truth)
    store = PartStore(tmp_path / 'parts', dict(question=1))
    images = {rank: [] for rank in range(3)}
    for rank in (2, 1, 0):  # one after the other, rank 0 last: as if it had waited
        waited = []
        share = Share(rank, 3, lambda waited=waited: waited.append(1))
        found = probe_images(probe, Batches(), truth, store, images[rank].append, share)
        assert waited == [1] and (found is None) == (rank > 0)
    findings_equal(found, expected)
    assert [sum(counts) for counts in images.values()] == [14, 8, 8]  # of four parts of 8, 8, 8 and 6 images
    everywhere = probe_images(probe, Batches(stop=0), truth, store, share=Share(2, 3), everywhere=True)
    findings_equal(everywhere, expected)
    store.path(1).unlink()
    with pytest.raises(DataError, match='part_00001.npz of another process is not there'):
        probe_images(probe, Batches(), truth, store, share=Share(0, 3))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='cannot be written'):
        PartStore(tmp_path / 'file' / 'parts', {})


def test_two_stage_detectors_are_probed_at_the_objects_centre(tmp_path):
    cfg = shrink(config("_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'"))
    cfg.model.backbone.update(type='MoEResNet', moe=dict(stages=(1,), unit='patch', grid=2, **MOE))
    torch.manual_seed(0)
    model = initialise(build(cfg.model)).eval()
    data = batch(SIZES)
    truth = ground_truth(tmp_path, data)
    (name,) = find_routers(model)
    probe = Probe(model, conditions_of(model)[:2], {name: 2})
    assert 'two-stage' in probe.no_provenance and probe.no_assignment is None
    found = probe(range(3), data, truths_of(truth, range(3)))
    layer = found.layers[name]
    assert probe.no_losses and (found.detection_levels == -1).all() and (layer.detection_rows == -1).all()
    for i, row in enumerate(layer.truth_rows):
        x, y, w, h = truth.objects.boxes[i]
        assert layer.image_ids[row] == truth.objects.image_ids[i]
        # the input is padded to 96x96 and cut in the middle
        assert divmod(layer.patches[row], 2) == (int(y + h / 2 >= 48), int(x + w / 2 >= 48))
    assert len(np.unique(layer.patches[layer.truth_rows])) > 1
    assert Intervention(forced=0) in [i for c in probe.conditions for i in c.interventions.values()]
    assert not probe.conditions[0].keeps_features


def test_objects_of_two_stages_have_the_level_that_their_box_is_pooled_from(tmp_path):
    data = batch([(256, 256)] * 2)
    sides = [(20, 60, 120), (230, 10, 111)]
    # FPN, section 4.2, with k0 = 4 for 224 pixels and the lowest level P2: floor(log2(side / 56)), from 0 to 3
    expected = [(0, 0, 1), (2, 0, 0)]
    truths = []
    for image, of_image in enumerate(sides):
        boxes = np.array([[5.0, 5.0, side, side] for side in of_image])
        truths.append(Truth(np.arange(3) + 3 * image, boxes, np.zeros(3, dtype=int)))
    cfg = shrink(config("_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'"))
    conv = {'modules': 'rpn_head.rpn_conv', 'type': 'MoEConv2d', 'num_experts': 3, 'top_k': 1, 'num_levels': 5}
    model = spread_weights(build(with_experts(cfg.model, [conv]))).eval()
    findings = Probe(model)(range(2), data, truths)
    assert findings.positives[:, 1].tolist() == [level for of_image in expected for level in of_image]
    layer = findings.layers['rpn_head.rpn_conv']
    assert layer.levels.max() == 4 and (layer.truth_rows == NO_ROW).all()
    rows = layer.positive_rows
    np.testing.assert_array_equal(layer.levels[rows], findings.positives[:, 1])
    assert layer.image_ids[rows].tolist() == [0, 0, 0, 1, 1, 1]
