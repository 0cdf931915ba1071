"""The check of annotation files against entries planted by hand, and against what mmdet does with random files."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset

from moe_det.engine.coco_file import read_coco
from moe_det.engine.dataset_check import KINDS, Report, check_entries
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
    assert report.counts == {} and usable == {7: 3, 8: 3}


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
    ('annotations', put(ignore=1), set()),
    ('annotations', put(iscrowd=1), set()),
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
        annotation['bbox'] = [60, 50, 70, 40]  # amodal boxes, which reach beyond the image; as corners they would fold
    assert report_of(content).counts == {'partly_outside': 6}


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
