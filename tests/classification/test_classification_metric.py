"""Error and decomposition over a whole test set, however it was cut into batches and processes."""

from __future__ import annotations

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from small_runs import Collect

from moe_det.classification import metric as module
from moe_det.classification.decomposition import DecompositionMeter
from moe_det.classification.metric import ClassificationMetric
from moe_det.errors import DataError, MoEConfigError


def predictions(number: int, experts: int = 3, classes: int = 6, layers=('moe',)) -> dict:
    generator = torch.Generator().manual_seed(0)
    gates = {layer: (torch.randn(number, experts, generator=generator) * 3).softmax(1) for layer in layers}
    probs = torch.randn(number, classes, generator=generator).softmax(1)
    by_expert = {layer: torch.randint(0, classes, (number,), generator=generator) for layer in layers}
    labels = torch.randint(0, classes, (number,), generator=generator)
    return dict(probs=probs, labels=labels, gates=gates, expert_classes=by_expert)


def part(found: dict, rows: slice) -> dict:
    return {
        key: {name: v[rows] for name, v in value.items()} if isinstance(value, dict) else value[rows]
        for key, value in found.items()
    }


def test_numbers_are_those_of_the_meter_over_the_whole_set():
    found = predictions(100)
    metric = ClassificationMetric(top_errors=(2, 9))
    for start in range(0, 100, 32):
        metric.process({}, [part(found, slice(start, start + 32))])
    metrics = metric.evaluate(100)
    meter = DecompositionMeter(3, 6)
    predicted = found['probs'].argmax(1)
    meter.update(found['gates']['moe'], predicted, found['expert_classes']['moe'], found['labels'])
    expected = meter.compute().to_dict()
    order = found['probs'].argsort(1, descending=True)
    hit2 = sum(int(label) in row[:2].tolist() for row, label in zip(order, found['labels'], strict=True))
    expected |= {'top2_error': 1 - hit2 / 100, 'top9_error': 0.0}  # of six classes, nine are all
    assert metrics == pytest.approx(expected)
    assert metric.decompositions['moe'].table.sum() == 100
    # a second evaluation starts anew
    metric.process({}, [part(found, slice(0, 50))])
    assert metric.evaluate(50)['error'] == pytest.approx((predicted[:50] != found['labels'][:50]).double().mean())


def test_layers_whose_experts_are_no_classifiers_are_judged_by_the_models_class():
    found = predictions(60, layers=('stage3', 'stage4'))
    found['expert_classes'] = {}
    metric = ClassificationMetric(prefix='test')
    metric.process({}, [found])
    metrics = metric.evaluate(60)
    assert set(metrics) == {'test/error', *(f'test/{n}/stage{i}' for n in ('I_EY', 'H_s', 'H_u') for i in (3, 4))}
    meter = DecompositionMeter(3, 6)
    predicted = found['probs'].argmax(1)
    meter.update(found['gates']['stage4'], predicted, predicted, found['labels'])
    assert metrics['test/I_EY/stage4'] == pytest.approx(meter.compute().information)


def test_labels_may_come_with_the_batch_and_experts_may_be_missing():
    found = predictions(20)
    labels, found = found['labels'], dict(found, labels=None, gates={}, expert_classes={})
    metric = ClassificationMetric()
    metric.process(dict(labels=labels), [found])
    assert metric.evaluate(20) == {'error': float((found['probs'].argmax(1) != labels).double().mean())}
    with pytest.raises(ValueError, match='no labels'):
        metric.process({}, [found])
    with pytest.raises(ValueError, match='labels from 0 to 6, the model has 6 classes'):
        metric.process(dict(labels=torch.arange(20) % 7), [found])


def test_processes_are_joined(monkeypatch):
    found = predictions(90)
    whole = ClassificationMetric()
    whole.process({}, [found])
    expected = whole.evaluate(90)
    ranks = []
    for rows in (slice(0, 40), slice(40, 90), None):  # the third process had no image
        metric = ClassificationMetric()
        if rows is not None:
            metric.process({}, [part(found, rows)])
        ranks.append(metric)
    states = [(m._samples, m._wrong, m._meters) for m in ranks]
    monkeypatch.setattr(module, 'all_gather_object', lambda mine: states)
    assert ranks[2].evaluate(90) == pytest.approx(expected)


def test_merged_meters():
    found = predictions(50)
    meters = [DecompositionMeter(3, 6) for _ in range(3)]
    arguments = (found['gates']['moe'], found['probs'].argmax(1), found['expert_classes']['moe'], found['labels'])
    meters[0].update(*arguments)
    for meter, rows in ((meters[1], slice(0, 20)), (meters[2], slice(20, 50))):
        meter.update(*(value[rows] for value in arguments))
    before = meters[2].compute().to_dict()
    meters[1].merge(meters[2])
    assert meters[1].compute().to_dict() == pytest.approx(meters[0].compute().to_dict())
    assert meters[2].compute().to_dict() == before
    with pytest.raises(ValueError, match='cannot merge 4 experts and 6 classes into 3 experts'):
        meters[1].merge(DecompositionMeter(4, 6))


def test_images_left_out_or_counted_twice_are_refused():
    metric = ClassificationMetric()
    metric.process({}, [predictions(20)])
    with pytest.raises(MoEConfigError, match='20 images were counted, the test set has 24: .*round_up=False'):
        metric.evaluate(24)


def test_too_few_images():
    metric = ClassificationMetric()
    metric.process({}, [predictions(2)])
    with pytest.raises(DataError, match='layer moe: 2 samples are too few to tell what 3 experts do'):
        metric.evaluate(2)
    with pytest.raises(MoEConfigError, match='expected integers above 1'):
        ClassificationMetric(top_errors=(1,))


@pytest.mark.parametrize('classes', [6, 40])
def test_table_in_the_log(classes):
    logger = MMLogger.get_instance(f'table-{classes}')
    seen = Collect()
    logger.addHandler(seen)
    logger.setLevel(logging.INFO)
    metric = ClassificationMetric()
    metric.dataset_meta = dict(classes=[f'name{i}' for i in range(classes)])
    metric.process({}, [predictions(300, classes=classes)])
    metric.evaluate(300)
    text = seen.records[-1].getMessage()
    table = metric.decompositions['moe'].table
    assert 'moe: samples by expert and predicted class, 300 in all' in text
    if classes == 6:
        rows = [line.split() for line in text.splitlines()[2:]]
        assert [[int(cell) for cell in row[1:]] for row in rows] == table.tolist()
    else:
        top = int(table[1].argmax())
        assert f'expert 1: {table[1].sum()} samples: name{top} {table[1, top]}, ' in text
