"""Sizes, matching and average precision by COCO's rules, against hand-worked cases and plain pycocotools."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_files import coco_content

from moe_det.analysis.ground_truth import GroundTruth
from moe_det.errors import DataError

REAL = 'coco-small/annotations/instances_val2017.json'


def write(path, annotations, images=1):
    content = coco_content((), range(1, images + 1), {3: 'a', 8: 'b'}, (500, 500), 'jpg')
    path.write_text(json.dumps(content | {'annotations': annotations}))
    return path


def truth(number, box, area=None, image=1, category=3, **more):
    area = box[2] * box[3] if area is None else area
    return dict(id=number, image_id=image, category_id=category, bbox=box, area=area, iscrowd=0, **more)


def found(*rows):
    """Detections: position of the image, x, y, width, height, score, label; of an unknown level."""
    rows = np.array(rows, dtype=float).reshape(-1, 7)
    return np.concatenate([rows, np.full((len(rows), 1), -1)], axis=1)


def test_area_decides_the_size_and_a_limit_belongs_to_the_smaller(tmp_path):
    areas = [1023.5, 1024, 1024.5, 9216, 9216.5, 0]
    # boxes of 100x100 are there to be ignored: the mask's area counts
    annotations = [truth(i, [0, 0, 100, 100], area) for i, area in enumerate(areas, 1)]
    objects = GroundTruth(write(tmp_path / 'a.json', annotations), [1]).objects
    assert objects.sizes.tolist() == [0, 0, 1, 1, 2, 0]
    assert objects.areas.tolist() == areas


def test_own_limits(tmp_path):
    annotations = [truth(i, [0, 0, 1, 1], area) for i, area in enumerate([99, 101, 401], 1)]
    objects = GroundTruth(write(tmp_path / 'a.json', annotations), [1], limits=(10, 20)).objects
    assert objects.sizes.tolist() == [0, 1, 2]


def test_crowds_and_other_categories_have_no_size(tmp_path):
    annotations = [truth(1, [0, 0, 9, 9]), {**truth(2, [0, 0, 9, 9]), 'iscrowd': 1}, truth(5, [0, 0, 9, 9], category=8)]
    path = write(tmp_path / 'a.json', annotations)
    assert GroundTruth(path, [1]).annotation_ids == [1, 5]
    one = GroundTruth(path, [1], [3])
    assert one.annotation_ids == [1] and one.crowds == 1
    assert one.category_ids == [3] and one.category_names == ['a']
    turned = GroundTruth(path, [1], [8, 3])
    assert turned.objects.categories.tolist() == [1, 0] and turned.category_names == ['b', 'a']


@pytest.mark.parametrize('area', [None, 'missing', -1, float('nan'), float('inf'), '12', True])
def test_an_area_that_is_none(tmp_path, area):
    annotation = truth(7, [0, 0, 9, 9])
    annotation['area'] = area
    if area == 'missing':
        del annotation['area']
    with pytest.raises(DataError, match=r"annotation 7: 'area' is .*expected pixels"):
        GroundTruth(write(tmp_path / 'a.json', [annotation]), [1])


def test_no_objects_and_unknown_images(tmp_path):
    path = write(tmp_path / 'a.json', [truth(1, [0, 0, 9, 9])], images=2)
    with pytest.raises(DataError, match='no annotated object'):
        GroundTruth(path, [2])
    with pytest.raises(DataError, match='does not have the image 9 and 1 more'):
        GroundTruth(path, [1, 9, 10])
    with pytest.raises(DataError, match='image 1 is named twice'):
        GroundTruth(path, [1, 2, 1])


def test_matching_worked_out_by_hand(tmp_path):
    annotations = [
        truth(11, [0, 0, 10, 10]),
        truth(12, [100, 100, 10, 10]),
        truth(13, [200, 200, 10, 10]),
        truth(14, [300, 300, 10, 10], category=8),
        truth(15, [0, 0, 10, 10], image=2),
        truth(16, [400, 400, 10, 10]),
    ]
    ground_truth = GroundTruth(write(tmp_path / 'a.json', annotations, images=2), [1, 2])
    detections = found(
        [0, 0, 0, 10, 6, 0.3, 0],  # overlaps 11 by 0.6, but the next has the higher score
        [0, 0, 0, 10, 9, 0.9, 0],
        [0, 100, 100, 10, 4, 0.8, 0],  # 0.4 with 12: too little
        [0, 300, 300, 10, 10, 0.9, 0],  # another class than 14
        [0, 200, 200, 10, 5, 0.7, 0],  # exactly 0.5 with 13
        [1, 0, 0, 10, 10, 0.1, 0],
        [0, 400, 400, 10, 8, 0.5, 0],  # 16: both overlap enough; the higher score wins, not the better box
        [0, 400, 400, 10, 10, 0.4, 0],
    )
    assert ground_truth.annotation_ids == [11, 12, 13, 14, 16, 15]  # image by image
    assert ground_truth.objects.image_ids.tolist() == [0, 0, 0, 0, 0, 1]
    assert ground_truth.match(detections).tolist() == [1, -1, 4, -1, 6, 5]
    assert ground_truth.match(found()).tolist() == [-1] * 6


def test_no_detection_is_an_ap_of_zero_and_no_object_is_none(tmp_path):
    ground_truth = GroundTruth(write(tmp_path / 'a.json', [truth(1, [0, 0, 50, 50])]), [1])
    precision = ground_truth.average_precision(found())
    assert precision == dict(AP=0.0, AP50=0.0, AP75=0.0, AP_S=None, AP_M=0.0, AP_L=None)
    perfect = ground_truth.average_precision(found([0, 0, 0, 50, 50, 0.5, 0]))
    assert perfect == dict(AP=pytest.approx(1), AP50=pytest.approx(1), AP75=pytest.approx(1), AP_S=None,
                           AP_M=pytest.approx(1), AP_L=None)  # fmt: skip


@pytest.fixture(scope='module')
def real(request):
    folder = request.getfixturevalue('shared_data')
    path = folder / REAL
    if not path.is_file():
        pytest.skip(f'{path} not found')
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    rng = np.random.default_rng(0)
    images, categories = sorted(coco.imgs), sorted(coco.cats)
    rows = []
    for annotation in coco.dataset['annotations']:
        for _ in range(rng.integers(0, 3)):
            box = np.array(annotation['bbox']) + rng.normal(0, 0.08, 4) * np.tile(annotation['bbox'][2:], 2)
            wrong = rng.random() < 0.1
            category = rng.choice(categories) if wrong else annotation['category_id']
            places = images.index(annotation['image_id']), categories.index(category)
            rows.append([places[0], *np.maximum(box, 0.5), rng.random(), places[1]])
    return path, coco, found(*rows)


def test_ap_by_size_is_pycocotools_on_real_annotations(real):
    path, coco, detections = real
    images, categories = sorted(coco.imgs), sorted(coco.cats)
    with contextlib.redirect_stdout(io.StringIO()):
        results = [
            dict(
                image_id=images[int(r[0])],
                bbox=r[1:5].tolist(),
                score=float(r[5]),
                category_id=categories[int(r[6])],
            )
            for r in detections
        ]
        evaluation = COCOeval(coco, coco.loadRes(results), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ground_truth = GroundTruth(path, images, categories)
    ours = ground_truth.average_precision(detections)
    assert list(ours.values()) == pytest.approx(evaluation.stats[:6].tolist(), abs=1e-12)
    assert 0.1 < ours['AP'] < 0.9 and len({round(v, 6) for v in ours.values()}) == 6


def renumbered(path, target, image_id, annotation_id, category_id):
    """Copies annotations with other ids; returns the new ids of the images and categories in the old order."""
    content = json.loads(path.read_text())
    names = {image['id']: image_id(image['id']) for image in content['images']}
    kinds = {category['id']: category_id(category['id']) for category in content['categories']}
    for image in content['images']:
        image['id'] = names[image['id']]
    for category in content['categories']:
        category['id'] = kinds[category['id']]
    for number, annotation in enumerate(content['annotations']):
        annotation['image_id'], annotation['category_id'] = (
            names[annotation['image_id']],
            kinds[annotation['category_id']],
        )
        annotation['id'] = annotation_id(number)
    target.write_text(json.dumps(content))
    return names, kinds


IDS = {
    'strings': (lambda i: f'val/{i}.jpg', lambda n: f'a{n}', str),
    'time stamps in nanoseconds': (lambda i: 1561452123456789012 + i, lambda n: 2**60 + n, lambda c: 2**55 + c),
    'hashes of 67 bits': (lambda i: 10**20 - i, lambda n: 10**20 + n, lambda c: c),
    'an annotation 0': (lambda i: -i, lambda n: n, lambda c: c - 1),
}


@pytest.mark.parametrize('kind', IDS)
def test_ids_of_any_kind_give_the_same_numbers(real, tmp_path, kind):
    path, coco, detections = real
    images, categories = sorted(coco.imgs), sorted(coco.cats)
    names, kinds = renumbered(path, tmp_path / 'other.json', *IDS[kind])
    plain = GroundTruth(path, images, categories)
    other = GroundTruth(tmp_path / 'other.json', [names[i] for i in images], [kinds[c] for c in categories])
    assert other.average_precision(detections) == plain.average_precision(detections)
    assert other.match(detections).tolist() == plain.match(detections).tolist()
    for field in ('image_ids', 'categories', 'sizes'):
        assert getattr(other.objects, field).tolist() == getattr(plain.objects, field).tolist()
    assert other.positions_of([names[images[3]], names[images[0]]]) == [3, 0]
    numbers = {annotation['id']: IDS[kind][1](n) for n, annotation in enumerate(coco.dataset['annotations'])}
    assert other.annotation_ids == [numbers[i] for i in plain.annotation_ids]


def test_sizes_are_those_that_pycocotools_counts(real):
    path, coco, _ = real
    ground_truth = GroundTruth(path, sorted(coco.imgs))
    objects, ids = ground_truth.objects, np.array(ground_truth.annotation_ids)
    for size, (low, high) in enumerate(ground_truth.area_ranges()[1:]):
        inside = set(coco.getAnnIds(areaRng=[low, high], iscrowd=False))
        assert set(ids[objects.sizes == size].tolist()) <= inside
    assert len(ids) == len(coco.getAnnIds(iscrowd=False))
    assert ground_truth.crowds == len(coco.getAnnIds(iscrowd=True))


def test_matches_on_real_annotations_follow_the_greedy_rule(real):
    """A naive loop over one class at a time, as COCO's paper of the evaluation describes it."""
    path, coco, detections = real
    images, categories = sorted(coco.imgs), sorted(coco.cats)
    ground_truth = GroundTruth(path, images, categories)
    got = dict(zip(ground_truth.annotation_ids, ground_truth.match(detections).tolist(), strict=True))
    checked = 0
    for place, image in enumerate(images[:60]):
        for label, category in enumerate(categories):
            truths = coco.loadAnns(coco.getAnnIds(imgIds=[image], catIds=[category]))
            if any(t['iscrowd'] for t in truths):
                continue  # crowds may be matched several times
            at = np.flatnonzero((detections[:, 0] == place) & (detections[:, 6] == label))
            at = at[np.argsort(-detections[at, 5], kind='stable')]
            expected = {t['id']: -1 for t in truths}
            for number in at:
                overlaps = {t['id']: iou(detections[number, 1:5], t['bbox']) for t in truths if expected[t['id']] < 0}
                if overlaps and max(overlaps.values()) >= 0.5:
                    expected[max(overlaps, key=overlaps.get)] = int(number)
            for annotation, number in expected.items():
                assert got[annotation] == number
                checked += number >= 0
    assert checked > 50


def iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    return inside / (a[2] * a[3] + b[2] * b[3] - inside)


@pytest.mark.parametrize(
    ('about', 'expected'),
    [
        ({}, None),
        ({'info': None, 'licenses': 3}, None),
        ({'info': {'description': 'Fish  of\na pond, CC BY 4.0'}}, 'Fish of a pond, CC BY 4.0'),
        ({'info': {'description': 'Fish'}, 'licenses': [{'name': 'MIT'}, 'x', {'name': 'MIT'}]}, 'Fish, MIT'),
    ],
)
def test_the_file_says_where_its_images_are_from(tmp_path, about, expected):
    path = write(tmp_path / 'fish.json', [truth(1, [0, 0, 9, 9])])
    path.write_text(json.dumps({**json.loads(path.read_text()), **about}))
    assert GroundTruth(path).source == expected
