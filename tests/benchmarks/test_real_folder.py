"""Folders of benchmarks/real_images.py: classes come from the file, and what cannot be used is one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real.folder import read_folder
from small_files import coco_content

from moe_det.errors import DataError


def content(names: dict[int, str], images: int, without: int | None = None) -> dict:
    """An annotation file whose image i has an object of each category but one."""
    objects = [(i, category, [1, 2, 9, 9]) for i in range(images) for category in names if category != without]
    return {'info': {'description': 'drawn for a test'}, **coco_content(objects, range(images), names, (64, 48), 'jpg')}


def write(folder: Path, train: dict, val: dict) -> Path:
    (folder / 'annotations').mkdir(parents=True)
    for split, one in (('train', train), ('val', val)):
        (folder / f'{split}2017').mkdir()
        (folder / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(one), encoding='utf-8')
    return folder


NAMES = {3: 'cat', 5: 'dog'}


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        read_folder(str(folder))
    return str(error.value)


def test_classes_and_ids_are_those_of_the_files(tmp_path):
    # ids may differ between the files: names and their order count
    folder = write(tmp_path / 'pets', content(NAMES, 4), content({9: 'cat', 1: 'dog'}, 3))
    found = read_folder(str(folder))
    assert found.classes == ('cat', 'dog') and found.category_ids == (9, 1)
    assert found.name == 'pets' and found.images == (4, 3) and found.source == 'drawn for a test'
    assert [image['id'] for image in found.val_images()] == [0, 1, 2]


def test_other_annotations_have_another_digest(tmp_path):
    one = read_folder(str(write(tmp_path / 'one', content(NAMES, 4), content(NAMES, 3))))
    two = read_folder(str(write(tmp_path / 'two', content(NAMES, 4), content(NAMES, 2))))
    assert one.digest != two.digest


def test_folders_in_another_layout_are_named(tmp_path):
    assert 'is not a folder' in refused(tmp_path / 'nowhere')
    folder = write(tmp_path / 'pets', content(NAMES, 4), content(NAMES, 3))
    (folder / 'val2017').rename(folder / 'valid')
    text = refused(folder)
    assert 'val2017 missing' in text and 'valid' in text and 'COCO layout' in text
    (folder / 'valid').rename(folder / 'val2017')
    train = folder / 'annotations' / 'instances_train2017.json'
    train.write_text(train.read_text()[:100])
    assert str(train) in refused(folder)


@pytest.mark.parametrize(
    ('train', 'val', 'words'),
    [
        (content(NAMES, 4, without=5), content(NAMES, 3), ("no object of 'dog'", 'instances_train2017.json')),
        (content(NAMES, 1), content(NAMES, 3), ('1 images for 2 categories',)),
        (content(NAMES, 4), content({3: 'cat', 5: 'cow'}, 3), ("'cow', 'dog'",)),
        (content(NAMES, 4), content({5: 'dog', 3: 'cat'}, 3), ('another order',)),  # which numbers the labels
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, train, val, words):
    text = refused(write(tmp_path / 'pets', train, val))
    assert all(word in text for word in words)


def test_the_real_folders_can_be_used(shared_data):
    found = {name: read_folder(str(shared_data / name)) for name in ('aquarium', 'facemask', 'bccd')}
    assert [(len(one.classes), *one.images) for one in found.values()] == [(7, 476, 162), (3, 632, 216), (3, 281, 83)]
