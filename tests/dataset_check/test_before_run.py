"""The look at the data before a run: what is missing or damaged ends in one message that names it."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image
from small_files import coco_content

from moe_det.dataset_check import before_run as data_check
from moe_det.dataset_check.coco_file import read_coco
from moe_det.errors import DataError
from moe_det.running.launch import check_data


def coco(**changes) -> dict:
    objects = [(number, 5, [1, 1, 4, 4]) for number in range(4)]
    return coco_content(objects, range(4), {5: 'disc', 9: 'box'}, (8, 8)) | changes


@pytest.fixture
def root(tmp_path) -> Path:
    """A complete data set of four 8-pixel images."""
    (tmp_path / 'ann').mkdir()
    (tmp_path / 'images').mkdir()
    for number in range(4):
        Image.new('RGB', (8, 8)).save(tmp_path / 'images' / f'{number}.png')
    (tmp_path / 'ann' / 'a.json').write_text(json.dumps(coco()))
    return tmp_path


def config(root: Path, split: str = 'train', classes=('disc', 'box'), metric=None, model=None, **dataset) -> Config:
    leaf = dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='ann/a.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes) if classes else None,
    )
    leaf.update(dataset)
    cfg = {f'{split}_dataloader': dict(dataset=dict(type='RepeatDataset', times=1, dataset=leaf)), 'model': model or {}}
    if metric is not None:
        cfg[f'{split}_evaluator'] = metric
    return Config(cfg)


def message(cfg: Config, *splits: str) -> str:
    with pytest.raises(DataError) as caught:
        check_data(cfg, splits or ('train',))
    return str(caught.value)


def test_a_complete_data_set_passes_in_silence(root, capsys):
    metric = dict(type='CocoMetric', ann_file=str(root / 'ann' / 'a.json'))
    check_data(config(root), ('train', 'val'))
    check_data(config(root, 'val', metric=metric), ('train', 'val'))
    assert capsys.readouterr().err == ''


def test_missing_data_folder_says_where_it_looked_and_what_to_do(root, monkeypatch):
    monkeypatch.chdir(root)
    text = message(config('data/coco/'))
    assert str(root / 'data' / 'coco') in text
    assert '--data-root DIR' in text
    assert 'moe-det train shapes/retinanet_moe_soft' in text
    assert 'moe-det make-shapes data/shapes' in text
    assert 'moe-det make-shapes data/shapes' in message(config('data/shapes/'))
    check_data(config('data/coco/'), ('val', 'test'))  # a split that the run does not read


def test_missing_files_are_named_beside_what_is_there(root):
    assert 'b.json does not exist' in (text := message(config(root, ann_file='ann/b.json'))) and 'a.json' in text
    text = message(config(root, data_prefix=dict(img='imagse')))
    assert str(root / 'imagse') in text and "Did you mean 'images'" in text
    assert 'is a folder' in message(config(root, ann_file='ann'))
    metric = [dict(type='CocoMetric', ann_file=str(root / 'ann' / 'gone.json'))]
    assert 'gone.json' in message(config(root, 'val', metric=metric), 'val')


def test_images_of_another_split_are_noticed(root):
    (root / 'empty').mkdir()
    text = message(config(root, data_prefix=dict(img='empty')))
    assert str(root / 'empty') in text and '0.png' in text


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', ('empty',)),
        (b'\x89PNG\xff\xfe' + bytes(20), ('byte 0', 'binary')),
        (b'version https://git-lfs.github.com/spec/v1\n', ('not JSON', 'byte 0', 'git-lfs')),
        (b'{"images": [], "annotations": [1,]}', ('not JSON', 'byte 33')),
        (b'[{"image_id": 1, "score": 0.5}]', ('list', 'detection result')),
        (b'"text"', ('expected a JSON object', 'a text')),
        (json.dumps({'info': {}, 'images': []}).encode(), ("'annotations'", "'info'")),
        (json.dumps(coco(images={})).encode(), ("'images'", 'expected a list')),
        (json.dumps(coco(images=[])).encode(), ('at least one image',)),
        (json.dumps(coco(annotations=[])).encode(), ('nothing to learn',)),
        (json.dumps(coco(images=[dict(id=1, width=1, height=1)])).encode(), ('images[0]', "'file_name'")),
        (json.dumps(coco(annotations=[dict(id=1, image_id=1, bbox=[1, 1, 1, 1])])).encode(), ("'category_id'",)),
        (
            json.dumps(coco(annotations=[dict(id=1, image_id=1, category_id=5, bbox=[1, 2], area=1)])).encode(),
            ('annotations[0]', 'bbox=[1, 2]'),
        ),
    ],
)
def test_damaged_annotation_files(root, content, words):
    (root / 'ann' / 'a.json').write_bytes(content)
    text = message(config(root))
    assert str(root / 'ann' / 'a.json') in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize('kept', [0.3, 0.5, 0.9])
def test_a_truncated_file_is_told_from_a_malformed_one_with_its_length(root, kept):
    whole = json.dumps(coco(info='Größe'), ensure_ascii=False).encode()
    cut = whole[: int(kept * len(whole))]
    (root / 'ann' / 'a.json').write_bytes(cut)
    text = message(config(root))
    assert 'truncated' in text and f'ends at byte {len(cut)}' in text
    assert gc.isenabled()


def test_no_class_in_common_lists_both_and_how_to_set_them(root):
    text = message(config(root, classes=None))  # CocoDataset's own 80 classes
    assert 'person' in text and 'disc' in text
    assert "metainfo=dict(classes=('disc', 'box'))" in text and 'num_classes=2' in text
    assert "('name',)" in message(config(root, classes='disc'))


def test_categories_that_would_be_ignored_are_listed(root, capsys):
    check_data(config(root, classes=('disc',)), ('train',))
    err = capsys.readouterr().err
    assert '1 of 2 categories' in err and 'box' in err


def two_stages(*numbers: int) -> dict:
    return dict(rpn_head=dict(num_classes=1), roi_head=dict(bbox_head=[dict(num_classes=n) for n in numbers]))


@pytest.mark.parametrize(
    ('model', 'line'),
    [
        (dict(bbox_head=dict(num_classes=1)), 'model = dict(bbox_head=dict(num_classes=2))'),
        (dict(bbox_head=dict(num_classes=80)), 'model = dict(bbox_head=dict(num_classes=2))'),
        (dict(module=dict(bbox_head=dict(num_classes=3))), 'model = dict(module=dict(bbox_head=dict(num_classes=2)))'),
        (two_stages(2, 80), 'model = dict(roi_head=dict(bbox_head=[dict(num_classes=2), ...]))'),
    ],
)
def test_models_that_predict_more_or_fewer_classes_are_refused_with_the_line_that_mends_it(root, model, line):
    assert line in message(config(root, model=model))


def test_models_that_predict_the_classes_pass(root):
    check_data(config(root, model=dict(bbox_head=dict(num_classes=2))), ('train',))
    check_data(config(root, model=two_stages(2, 2)), ('train',))
    reads_names = config(root, model=dict(bbox_head=dict(num_classes=256)), return_classes=True)
    check_data(reads_names, ('train',))  # its outputs are places in a text


@pytest.mark.parametrize('where', ['everywhere', 'some'])
@pytest.mark.parametrize(('mark', 'words'), [(1, 'is a crowd'), ('0', "iscrowd='0'")])
def test_nothing_to_learn_or_to_score_is_an_error(root, mark, words, where):
    content = coco()
    for annotation in content['annotations'][: None if where == 'everywhere' else 3]:
        annotation['iscrowd'] = mark
    (root / 'ann' / 'a.json').write_text(json.dumps(content))
    metric = dict(type='CocoMetric', ann_file=str(root / 'ann' / 'a.json'))
    for cfg, split in ((config(root), 'train'), (config(root, 'val', metric=metric), 'val')):
        if where == 'some' and mark == 1:
            check_data(cfg, (split,))
        else:
            assert words in message(cfg, split)


def test_a_validation_set_without_objects_of_the_classes_has_an_ap_of_minus_one(root):
    (root / 'ann' / 'a.json').write_text(json.dumps(coco(annotations=[])))
    for metric in (dict(type='CocoMetric', ann_file=str(root / 'ann' / 'a.json')), dict(type='CocoMetric')):
        assert 'nothing to score' in message(config(root, 'val', metric=metric), 'val')
        check_data(config(root, 'val', metric=dict(metric, format_only=True)), ('val',))


def test_files_without_objects_beside_others_are_background(root):
    (root / 'ann' / 'b.json').write_text(json.dumps(coco(annotations=[])))
    cfg = config(root)
    leaf = cfg.train_dataloader.dataset.dataset
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[leaf, dict(leaf, ann_file='ann/b.json')])
    check_data(cfg, ('train',))


def test_a_metric_that_scores_another_file_is_named(root, capsys):
    other = root / 'ann' / 'other.json'
    other.write_text(json.dumps(coco()))
    check_data(config(root, 'val', metric=dict(type='CocoMetric', ann_file=str(other))), ('val',))
    assert str(other) in capsys.readouterr().err


def test_public_test_sets_have_no_annotations(root):
    content = coco()
    del content['annotations']
    (root / 'ann' / 'a.json').write_text(json.dumps(content))
    assert "'annotations'" in message(config(root, 'test', metric=dict(type='CocoMetric')), 'test')
    check_data(config(root, 'test', metric=dict(type='CocoMetric', format_only=True)), ('test',))


@pytest.mark.parametrize(
    'settings',
    [
        dict(data_root='s3://bucket/coco'),
        dict(data_root='data/coco', backend_args=dict(backend='petrel', path_mapping={'data/': 's3://bucket/'})),
        dict(type='XMLDataset', data_root='data/VOC'),
        dict(type='NotRegistered', data_root='data/x'),
    ],
)
def test_other_storage_and_other_kinds_of_data_are_left_alone(root, settings):
    check_data(config(root, **settings), ('train',))


def test_formats_of_derived_datasets_are_their_own(root):
    (root / 'ann' / 'a.json').write_text('{}')
    check_data(config(root, type='LVISV1Dataset'), ('train',))  # LVIS has coco_url and no file_name
    assert 'gone.json' in message(config(root, type='LVISV1Dataset', ann_file='ann/gone.json'))


def test_one_file_is_parsed_once(root, monkeypatch):
    read = []
    monkeypatch.setattr(data_check, 'read_coco', lambda path, **kwargs: read.append(path) or read_coco(path, **kwargs))
    cfg = config(root)
    cfg.val_dataloader = cfg.train_dataloader
    cfg.val_evaluator = dict(type='CocoMetric', ann_file=str(root / 'ann' / 'a.json'))
    check_data(cfg, ('train', 'val'))
    assert len(read) == 1
