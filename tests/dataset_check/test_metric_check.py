"""Several validation sets: what is refused before the first epoch, against what mmdet's evaluation makes of it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import EVALUATOR, init_default_scope
from mmengine.structures import InstanceData
from small_files import coco_content

from moe_det.dataset_check.before_run import check_data
from moe_det.errors import DataError

CLASSES = ('disc', 'box')


def write(folder: Path, name: str, ids: list, categories: tuple = (1, 2)) -> str:
    """An annotation file with a disc and a box in every image."""
    boxes = ([1, 1, 4, 4], [2, 3, 4, 4])
    objects = [(ident, category, box) for ident in ids for category, box in zip(categories, boxes, strict=True)]
    path = folder / f'{name}.json'
    path.write_text(json.dumps(coco_content(objects, ids, dict(zip(categories, CLASSES, strict=True)), (8, 8))))
    return str(path)


def dataset(path: str) -> dict:
    return dict(type='CocoDataset', ann_file=path, metainfo=dict(classes=CLASSES), pipeline=[], test_mode=True)


def metric(path: str | None, **settings) -> dict:
    return dict(type='CocoMetric', metric='bbox', **(dict(ann_file=path) if path else {}), **settings)


def config(paths: list[str], evaluator: object) -> Config:
    sets = [dataset(path) for path in paths]
    joined = sets[0] if len(sets) == 1 else dict(type='ConcatDataset', datasets=sets)
    return Config(dict(val_dataloader=dict(dataset=joined), val_evaluator=evaluator))


def evaluate(paths: list[str], evaluator: object) -> dict:
    """The metrics of detections that are the objects themselves; quite without the check."""
    init_default_scope('mmdet')
    built = EVALUATOR.build(evaluator if isinstance(evaluator, dict) and 'metrics' in evaluator else
                            dict(type='mmengine.Evaluator', metrics=evaluator))  # fmt: skip
    ids = [image['id'] for path in paths for image in json.loads(Path(path).read_text())['images']]
    lengths = [len(json.loads(Path(path).read_text())['images']) for path in paths]
    built.dataset_meta = dict(classes=CLASSES, cumulative_sizes=[sum(lengths[: n + 1]) for n in range(len(lengths))])
    with contextlib.redirect_stdout(io.StringIO()):
        for ident in ids:
            sample = DetDataSample(metainfo=dict(img_id=ident, ori_shape=(8, 8)))
            boxes = torch.tensor([[1.0, 1, 5, 5], [2, 3, 6, 7]])
            sample.pred_instances = InstanceData(bboxes=boxes, scores=torch.ones(2), labels=torch.arange(2))
            sample.instances = [dict(bbox=box.tolist(), bbox_label=n, ignore_flag=0) for n, box in enumerate(boxes)]
            built.process([sample])
        return built.evaluate(len(ids))


def message(cfg: Config) -> str:
    with pytest.raises(DataError) as caught:
        check_data(cfg, ('val',))
    return str(caught.value)


def test_one_metric_each_in_mmengines_evaluator_is_refused_with_lines_that_work(tmp_path):
    paths = [write(tmp_path, 'a', [1, 2]), write(tmp_path, 'b', [3, 4, 5])]
    metrics = [metric(paths[0], prefix='a'), metric(paths[1], prefix='b')]
    with pytest.raises(AssertionError):
        evaluate(paths, metrics)
    for evaluator in (metrics, dict(type='Evaluator', metrics=metrics)):
        text = message(config(paths, evaluator))
        assert 'a.json lacks 3 of 3 images' in text and 'b.json' in text and 'MultiDatasetsEvaluator' in text
    begin = text.index('val_evaluator = dict(')
    scope: dict = {}
    exec(text[begin:].replace('_delete_=True, ', ''), scope)
    check_data(config(paths, scope['val_evaluator']), ('val',))
    found = evaluate(paths, scope['val_evaluator'])
    assert found['set1/coco/bbox_mAP'] == found['set2/coco/bbox_mAP'] == 1


@pytest.mark.parametrize('path', [True, False])
def test_data_sets_that_share_image_ids_are_refused(tmp_path, path):
    paths = [write(tmp_path, 'a', [1, 2, 3, 4]), write(tmp_path, 'b', [3, 4])]
    one = metric(paths[0] if path else None)
    assert not path or evaluate(paths, [one])['coco/bbox_mAP'] < 1  # in silence
    assert 'both have an image 3' in message(config(paths, one))
    check_data(config(paths[:1], one), ('val',))


def test_one_metric_for_data_sets_with_a_common_file_passes(tmp_path, capsys):
    paths = [write(tmp_path, 'a', [1, 2]), write(tmp_path, 'b', [3, 4])]
    joined = write(tmp_path, 'both', [1, 2, 3, 4])
    check_data(config(paths, metric(joined)), ('val',))
    assert evaluate(paths, [metric(joined)])['coco/bbox_mAP'] == 1
    check_data(config(paths, metric(None)), ('val',))
    assert evaluate(paths, [metric(None)])['coco/bbox_mAP'] == 1


def test_more_images_in_the_metrics_file_are_told(tmp_path, capsys):
    path, larger = write(tmp_path, 'a', [1, 2]), write(tmp_path, 'b', [1, 2, 3])
    assert evaluate([path], [metric(larger)])['coco/bbox_mAP'] < 1
    check_data(config([path], metric(larger)), ('val',))
    assert '1 more images' in capsys.readouterr().err


def test_one_metric_too_few_for_the_data_sets(tmp_path):
    paths = [write(tmp_path, 'a', [1]), write(tmp_path, 'b', [2])]
    evaluator = dict(type='MultiDatasetsEvaluator', metrics=[metric(paths[0])], dataset_prefixes=['a', 'b'])
    assert '1 metrics and 2 dataset_prefixes for 2 data sets' in message(config(paths, evaluator))
    swapped = dict(evaluator, metrics=[metric(paths[1]), metric(paths[0])])
    assert 'lacks 1 of 1 images' in message(config(paths, swapped))


def test_results_of_one_name_are_refused_before_and_not_after_the_evaluation(tmp_path):
    path = write(tmp_path, 'a', [1])
    for metrics, good in (
        ([metric(path), metric(path)], False),
        ([metric(path), metric(path, prefix='coco')], False),
        ([metric(path), metric(path, prefix='other')], True),
    ):
        if good:
            check_data(config([path], metrics), ('val',))
            assert evaluate([path], metrics)
        else:
            assert 'coco/bbox_mAP' in message(config([path], metrics))
            with pytest.raises(ValueError, match='same metric name'):
                evaluate([path], metrics)


@pytest.mark.parametrize(
    ('categories', 'good'), [((1, 2), True), ((2, 1), False), (('c1', 'c2'), False), (('b', 'a'), False)]
)
def test_the_table_of_classes_needs_ascending_ids(tmp_path, categories, good):
    path = write(tmp_path, 'a', [1, 2], categories)
    content = json.loads(Path(path).read_text())
    for annotation in content['annotations']:
        annotation['bbox'][0] += 3 * (annotation['category_id'] == categories[1])  # boxes are never found, discs are
    Path(path).write_text(json.dumps(content))
    check_data(config([path], metric(path)), ('val',))
    by_class = metric(path, classwise=True)
    if good:
        check_data(config([path], by_class), ('val',))
    else:
        assert 'classwise' in message(config([path], by_class))
    try:
        right = evaluate([path], [by_class])['coco/disc_precision'] == 1
    except KeyError:  # a text is taken for a list of ids
        right = False
    assert right == good
