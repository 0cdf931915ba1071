"""The check of annotation files against entries planted by hand, and against what mmdet does with random files."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_files import coco_content

from moe_det.analysis.ground_truth import GroundTruth
from moe_det.dataset_check import KINDS, Report, check_entries
from moe_det.dataset_check.coco_file import read_coco
from moe_det.errors import DataError

NAN, INF = float('nan'), float('inf')


def clean() -> dict:
    """Three images with two annotations each, two categories."""
    images = [dict(id=n, file_name=f'{n}.jpg', width=100, height=80) for n in (1, 2, 3)]
    boxes = ([0, 0, 100, 80], [10, 20, 30, 40.5])
    annotations = [
        dict(id=10 * image + n, image_id=image, category_id=7 + n, bbox=list(box), area=box[2] * box[3], iscrowd=0)
        for image in (1, 2, 3)
        for n, box in enumerate(boxes)
    ]
    return dict(images=images, annotations=annotations, categories=[dict(id=7, name='cat'), dict(id=8, name='dog')])


def report_of(content: dict) -> Report:
    report = Report()
    check_entries(content, report)
    return report


def test_a_clean_file_has_no_problem_and_all_annotations_are_usable():
    report = Report()
    usable = check_entries(clean(), report)
    assert report.counts == {} and usable.all == {7: 3, 8: 3} and usable.crowds == {}


def remove(key: str):
    return lambda entry: entry.pop(key)


def put(**values):
    return lambda entry: entry.update(values)


# list, change of its second entry, the kinds that must be reported and no others
PLANTED = [
    ('annotations', remove('bbox'), {'missing_key'}),
    ('annotations', remove('area'), {'missing_key'}),
    ('images', remove('width'), {'missing_key', 'orphan_annotation'}),
    ('categories', remove('name'), {'missing_key', 'unknown_category'}),
    ('annotations', put(bbox=[NAN, 1, 5, 5]), {'non_finite'}),
    ('annotations', put(bbox=[1, 1, INF, 5]), {'non_finite'}),
    ('annotations', put(bbox=[1, 1, 5, 1e300]), {'non_finite'}),
    ('annotations', put(area=NAN), {'non_finite'}),
    ('annotations', put(bbox=[20, 20, -5, 5]), {'negative_box'}),
    ('annotations', put(bbox=[20, 20, 5, 0]), {'zero_box'}),
    ('annotations', put(bbox=[20, 20, 5, 0.5]), {'tiny_box'}),
    ('annotations', put(area=0), {'no_area'}),
    ('annotations', put(area=-3), {'negative_area'}),
    ('annotations', put(bbox=[200, 20, 5, 5]), {'outside_image'}),
    ('annotations', put(bbox=[-50, 20, 5, 5]), {'outside_image'}),
    ('annotations', put(bbox=[95, 20, 20, 5]), {'partly_outside'}),
    ('annotations', put(bbox=[95, 20, 5.9, 5]), set()),  # a rounding
    ('annotations', put(bbox=[1, 2, 3]), {'bad_box'}),
    ('annotations', put(bbox={'x': 1}), {'bad_box'}),
    ('annotations', put(bbox=['1', 2, 3, 4]), {'number_as_text'}),
    ('annotations', put(area='12'), {'number_as_text'}),
    ('annotations', put(area=None), {'not_a_number'}),
    ('annotations', put(bbox=[True, 2, 3, 4]), {'not_a_number'}),
    ('annotations', put(category_id=99), {'unknown_category'}),
    ('annotations', put(category_id='8'), {'id_type'}),
    ('annotations', put(image_id='1'), {'id_type'}),
    ('annotations', put(image_id=99), {'orphan_annotation'}),
    ('annotations', put(image_id=[1]), {'bad_id'}),
    ('annotations', put(id=NAN), {'bad_id'}),
    ('annotations', put(id='11'), {'text_id'}),
    ('annotations', put(id=10), {'duplicate_annotation_id'}),
    ('annotations', put(ignore=1), {'ignored'}),
    ('annotations', put(ignore='0'), {'bad_mark'}),
    ('annotations', put(ignore=False), set()),
    ('annotations', put(iscrowd=1), set()),
    ('annotations', put(iscrowd=True), set()),
    ('annotations', put(iscrowd=1.0), set()),
    ('annotations', remove('iscrowd'), {'no_iscrowd'}),
    ('annotations', put(iscrowd=None), {'no_iscrowd'}),
    ('annotations', put(iscrowd='0'), {'bad_mark'}),
    ('annotations', put(iscrowd='true'), {'bad_mark'}),
    ('annotations', put(iscrowd=0.5), {'bad_mark'}),
    ('annotations', put(iscrowd=[]), {'bad_mark'}),
    ('annotations', put(id=0), {'zero_id'}),
    ('annotations', put(id=0.0), {'zero_id'}),
    ('annotations', put(id=2**70), set()),
    ('images', put(id=1), {'duplicate_image_id', 'orphan_annotation'}),
    ('images', put(file_name='1.jpg'), {'duplicate_file'}),
    ('images', put(file_name=5), {'bad_name'}),
    ('images', put(width='100'), {'number_as_text'}),
    ('images', put(height=0), {'bad_image_size'}),
    ('images', put(height=-80), {'bad_image_size'}),
    ('images', put(height=NAN), {'non_finite'}),
    ('categories', put(id=7), {'duplicate_category_id', 'unknown_category'}),
    ('categories', put(name='cat'), {'duplicate_category_name'}),
    ('categories', put(name=''), {'bad_name'}),
]


@pytest.mark.parametrize(('where', 'change', 'kinds'), PLANTED)
def test_a_planted_fault_is_reported_with_its_place_and_nothing_else_is(where, change, kinds):
    content = clean()
    change(content[where][1])
    report = report_of(content)
    assert set(report.counts) == kinds
    if kinds:
        assert f'{where}[1]' in {example.where for kind in report.counts for example in report.examples[kind]}


@pytest.mark.parametrize('entry', [None, 5, 'text', [], [1, 2]])
@pytest.mark.parametrize('where', ['images', 'annotations', 'categories'])
def test_entries_that_are_no_objects(where, entry):
    content = clean()
    content[where].append(entry)
    assert report_of(content).counts == {'not_an_object': 1}


def test_examples_name_file_and_id():
    content = clean()
    content['annotations'][3]['bbox'] = [NAN, 1, 2, 3]
    text = '\n'.join(report_of(content).lines(errors=True))
    assert 'annotations[3] (id 21)' in text and "'2.jpg'" in text and 'nan' in text


def test_boxes_as_corners_are_recognised_and_crowded_ones_are_not_taken_for_it():
    content = clean()
    for annotation in content['annotations']:
        x, y, w, h = 40, 30, 50, 40
        annotation['bbox'] = [x, y, x + w, y + h]
    assert 'corner_boxes' in report_of(content).counts
    for annotation in content['annotations']:
        annotation['bbox'] = [30, 50, 90, 40]  # amodal boxes, which reach beyond the image; as corners they would fold
    assert report_of(content).counts == {'partly_outside': 6}


def many(boxes: list) -> dict:
    """One image of 100 x 80 pixels with an annotation of each box."""
    return clean() | {'annotations': coco_content([(1, 7, box) for box in boxes], (), {}, (0, 0))['annotations']}


def random_boxes(count: int) -> list[list[float]]:
    """Boxes [x, y, w, h] inside an image of 100 x 80 pixels, up to its borders."""
    generator = random.Random(count)
    sides = [(generator.uniform(5, 60), generator.uniform(5, 50)) for _ in range(count)]
    return [[generator.uniform(0, 100 - w), generator.uniform(0, 80 - h), w, h] for w, h in sides]


def test_boxes_in_centre_format_are_recognised_even_with_single_mistakes():
    boxes = random_boxes(200)
    assert report_of(many(boxes)).counts == {}
    centred = [[x + w / 2, y + h / 2, w, h] for x, y, w, h in boxes]
    assert report_of(many(centred)).counts['centre_boxes'] == 1
    assert 'centre_boxes' in report_of(many([*centred, [2, 2, 90, 70]])).counts
    beyond = [[x, y, 1.2 * w, 1.2 * h] for x, y, w, h in boxes]  # amodal boxes, which lie at the left border as well
    assert set(report_of(many(beyond)).counts) == {'partly_outside'}


@pytest.mark.parametrize(
    ('kind', 'write'),
    [
        ('centre_boxes', lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]),
        ('corner_boxes', lambda x, y, w, h: [x, y, x + w, y + h]),
        (None, lambda x, y, w, h: [x, y, w, h]),
        (None, lambda x, y, w, h: [x - 1, y - 1, w + 3, h + 1]),  # drawn wider than the outline
    ],
)
def test_polygons_tell_the_notation_of_boxes_that_would_fit_the_image_in_any(kind, write):
    boxes = [[10 + n, 10 + n, 12, 9] for n in range(8)]  # far from the borders: no reading leaves the image
    content = many([write(*box) for box in boxes])
    for annotation, (x, y, w, h) in zip(content['annotations'], boxes, strict=True):
        annotation['segmentation'] = [[x, y, x + w / 2, y, x + w / 2, y + h], [x + w / 2, y, x + w, y, x + w, y + h]]
    assert set(report_of(content).counts) == ({kind} if kind else set())


def test_a_file_of_crowds_has_nothing_to_learn():
    content = clean()
    for annotation in content['annotations']:
        annotation['iscrowd'] = True
    assert report_of(content).counts == {'only_crowds': 1}
    content['annotations'][0]['iscrowd'] = 0
    assert report_of(content).counts == {}


@pytest.mark.parametrize(
    ('ids', 'lost'),
    [
        ([10**18, 10**18 + 1, 3], False),
        ([10**25, 10**25 + 1, -3], False),
        (['a', 'b', 'c'], False),
        ([1, 2.0, -3], False),
        ([1, 'b', 3], True),  # one array of texts
        ([2**63 + 1, 2, 3], True),  # one array of floats
        ([2**53 + 1, 1.0, 3], True),
        (['a', 'a\0', 'c'], True),
    ],
)
@pytest.mark.parametrize('where', ['images', 'categories'])
def test_ids_that_the_evaluation_loses(where, ids, lost):
    content = clean()
    content['categories'].append(dict(id=9, name='fox'))
    key, old = ('image_id', (1, 2, 3)) if where == 'images' else ('category_id', (7, 8, 9))
    for entry, ident in zip(content[where], ids, strict=True):
        entry['id'] = ident
    for annotation in content['annotations']:
        annotation[key] = ids[old.index(annotation[key])]
    report = report_of(content)
    assert report.kinds(errors=True) == (['lost_ids'] if lost else [])
    try:
        precision = average_precision_of_the_truth(content)
    except TypeError:  # texts and numbers cannot be sorted
        precision = 0.0
    assert (precision < 1) == lost


def test_normalised_boxes_leave_nothing_to_learn():
    content = clean()
    for annotation in content['annotations']:
        annotation.update(bbox=[0.1, 0.2, 0.3, 0.4], area=0.12)
    report = report_of(content)
    assert report.counts == {'tiny_box': 6, 'nothing_usable': 1}
    assert report.kinds(errors=True) == ['nothing_usable']


def test_examples_are_limited_and_counted_on():
    content = clean()
    content['annotations'] = [dict(content['annotations'][0], id=n, area=0) for n in range(100)]
    report = report_of(content)
    assert report.counts['no_area'] == 100 and len(report.examples['no_area']) == 5
    assert 'and 97 more' in '\n'.join(report.lines(errors=False, examples=3))
    everything = Report(keep=None)
    check_entries(content, everything)
    (kind,) = (kind for kind in everything.as_list() if kind['kind'] == 'no_area')
    assert len(kind['entries']) == 100
    json.dumps(everything.as_list(), allow_nan=False)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('[' * 100_000, 'nested too deep'),
        ('{"images": [{"id": ' + '9' * 5000 + '}]}', 'cannot be read'),
        ('\ufeff{}', 'BOM'),
    ],
)
def test_json_that_pythons_parser_gives_up_on(tmp_path, content, words):
    (tmp_path / 'a.json').write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        read_coco(str(tmp_path / 'a.json'))
    assert 'a.json' in str(caught.value)


# -- random files ------------------------------------------------------------------------------------------------

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 120),
    st.sampled_from([10**30, -(10**400), 1.5, NAN, INF, -INF, 1e300, -0.0, '', '1', '7', 'x', '\ud800', '\0', [], {}]),
    st.lists(st.one_of(st.integers(-20, 120), st.floats(), st.text(max_size=2)), max_size=5),
    st.dictionaries(st.sampled_from(['id', 'bbox', 'name']), st.integers(0, 3), max_size=2),
)


@st.composite
def random_files(draw) -> object:
    """A clean file with random changes: values replaced, keys and entries removed, repeated or mixed up."""
    content = copy.deepcopy(clean())
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(sorted(content) or ['images']))
        entries = content.get(name)
        action = draw(st.sampled_from(['value', 'value', 'value', 'box', 'key', 'entry', 'repeat', 'list', 'drop']))
        if action == 'drop':
            content.pop(name, None)
        elif action == 'list':
            content[name] = draw(ODD)
        elif isinstance(entries, list) and entries:
            place = draw(st.integers(0, len(entries) - 1))
            entry = entries[place]
            if action == 'repeat':
                entries.append(copy.deepcopy(entry))
            elif action == 'entry' or not isinstance(entry, dict):
                entries[place] = draw(ODD)
            elif action == 'key' and entry:
                entry.pop(draw(st.sampled_from(sorted(entry))))
            elif action == 'box' and isinstance(entry.get('bbox'), list) and entry['bbox']:
                entry['bbox'][draw(st.integers(0, len(entry['bbox']) - 1))] = draw(ODD)
            elif entry:
                entry[draw(st.sampled_from(sorted(entry)))] = draw(ODD)
    return content


def load_as_mmdet_does(path: str) -> CocoDataset:
    with contextlib.redirect_stdout(io.StringIO()):
        return CocoDataset(
            ann_file=path, data_prefix=dict(img=''), metainfo=dict(classes=('cat', 'dog')), pipeline=[], lazy_init=False
        )


def average_precision_of_the_truth(content: dict) -> float:
    """COCO's AP of detections that are the objects themselves, as mmdet's metric hands them to pycocotools.

    Objects that the evaluation never looks at count as missed.
    """
    truth = COCO()
    truth.dataset = copy.deepcopy(content)
    objects = [annotation for annotation in content['annotations'] if not annotation.get('iscrowd')]
    keys = ('image_id', 'category_id', 'bbox')
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes([{**{key: copy.deepcopy(a[key]) for key in keys}, 'score': 1.0} for a in objects])
        evaluation = COCOeval(truth, found, 'bbox')
        evaluation.params.imgIds = [image['id'] for image in content['images']]
        evaluation.params.catIds = [category['id'] for category in content['categories']]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    of_all_sizes = [found for found in evaluation.evalImgs if found and found['aRng'] == evaluation.params.areaRng[0]]
    looked_at = sum(len(found['gtIgnore']) - sum(found['gtIgnore']) for found in of_all_sizes)
    return evaluation.stats[0] * looked_at / len(objects)


def analysed_precision_of_the_truth(path: str, content: dict) -> float:
    """The same AP as the size report has it."""
    images, categories = ([entry['id'] for entry in content[name]] for name in ('images', 'categories'))
    truth = GroundTruth(path, images, categories)
    objects = truth.objects
    columns = (objects.image_ids, *objects.boxes.T, np.ones(len(objects.areas)), objects.categories, objects.categories)
    return truth.average_precision(np.stack(columns, axis=1).astype(float))['AP']


def without(key: str):
    return lambda content: [annotation.pop(key) for annotation in content['annotations']]


def fill(key: str, values):
    def change(content: dict) -> None:
        for annotation, value in zip(content['annotations'], values, strict=True):
            annotation[key] = value

    return change


@pytest.mark.parametrize(
    'change',
    [
        without('iscrowd'),
        fill('iscrowd', [None] * 6),
        fill('iscrowd', [0, None, False, 0, True, 1]),
        fill('id', range(6)),
        fill('id', [f'a{n}' for n in range(6)]),
        fill('id', [0.0, -1, 2**70, 10**400, 5, 'x']),
    ],
)
def test_what_mmdet_trains_on_is_evaluated_and_analysed(change, tmp_path):
    content = clean()
    change(content)
    report = report_of(content)
    assert not report.kinds(errors=True)
    assert average_precision_of_the_truth(content) == 1
    (tmp_path / 'a.json').write_text(json.dumps(content))
    assert analysed_precision_of_the_truth(str(tmp_path / 'a.json'), content) == 1


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=random_files())
def test_random_files_end_in_a_report_and_those_without_errors_load(tmp_path, content):
    path = str(tmp_path / f'{os.getpid()}.json')
    with open(path, 'w') as file:
        json.dump(content, file)
    try:
        found = read_coco(path)
    except DataError as error:
        assert path in str(error)
        return
    for errors in (True, False):
        for line in found.report.lines(errors):
            line.encode()  # printable whatever the file holds
    assert set(found.report.counts) <= set(KINDS)
    json.dumps(found.report.as_list(), allow_nan=False)
    if found.report.kinds(errors=True):
        return
    data = load_as_mmdet_does(path)  # what passes the check does not fail in mmdet
    kept = [instance for n in range(len(data)) for instance in data.get_data_info(n)['instances']]
    assert len(kept) == sum(found.usable)  # and mmdet keeps what the check says that it keeps
    assert all(abs(value) < 1e8 for instance in kept for value in instance['bbox'])
    if set(found.report.counts) <= {'no_iscrowd', 'zero_id', 'text_id', 'duplicate_file'} and content['annotations']:
        assert average_precision_of_the_truth(content) == 1  # and it is evaluated
    if content['annotations']:
        assert analysed_precision_of_the_truth(path, content) >= 0  # and analysed


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cut=st.integers(0, 1000), junk=st.binary(max_size=8), place=st.integers(0, 1000))
def test_random_bytes_end_in_one_error_or_a_report(tmp_path, cut, junk, place):
    content = json.dumps(clean()).encode()
    content = content[: len(content) * cut // 1000]
    place = len(content) * place // 1000
    path = tmp_path / 'bytes.json'
    path.write_bytes(content[:place] + junk + content[place:])
    with contextlib.suppress(DataError):
        read_coco(str(path))
