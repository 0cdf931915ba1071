"""benchmarks/real_images.py: its configs, its record and its page."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import real_images as script
import torch
from common import README, RECORDS, RESULTS
from common.page import MEASURES, fill
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings
from real import runs
from real.backbones import BACKBONES, Pretrained
from real.conclusion import conclusion
from real.folder import Folder
from real.intervals import packed
from real.page import NAME, NOTHING, page, results
from real.runs import Plan, cost_of, resampled, summary_of
from real.settings import BASELINE, HEAD_ONLY, SETTINGS, SIZE, START
from report.report_example import make_example
from small_files import coco_content
from small_models import mmdet_scope

CLASSES = ('a fish', "angler's catch", 'crab')
WEIGHTS = Pretrained('/nowhere/nanodet.pth', 'abc', 'nanodet.json')


def folder(path: Path) -> Folder:
    return Folder(str(path), path.name, CLASSES, (1, 2, 3), (6, 4), 'abc', 'drawn')


@pytest.fixture
def plan(tmp_path) -> Plan:
    return Plan(folder(tmp_path / 'fish'), 'nanodet', WEIGHTS, 18, tmp_path / 'work')


@pytest.mark.parametrize('setting', [START, BASELINE, HEAD_ONLY, 'soft', 'shards, level'])
def test_a_config_says_what_its_setting_says(plan, setting):
    cfg = Config.fromfile(plan.config_file(setting), import_custom_modules=False)
    assert cfg.model.bbox_head.num_classes == 3 and cfg.load_from is None
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert tuple(dataset.metainfo.classes) == CLASSES and dataset.data_root == plan.folder.path
        assert [step.scale for step in dataset.pipeline if step.type == 'Resize'] == [(SIZE, SIZE)]
    assert cfg.test_evaluator.ann_file == plan.folder.val_file
    epochs = 18 if setting == START else 6
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == epochs
    backbone = cfg.model.backbone
    assert backbone.type == 'NanoDetG' and ('init_cfg' in backbone) == (setting == START)
    assert bool(backbone.get('frozen')) == SETTINGS[setting].frozen == (cfg.model.neck.type == 'FrozenFPN')
    assert ('moe' in cfg.model.bbox_head) != SETTINGS[setting].control


def test_experts_cost_what_dense_costs_but_in_the_published_recipe():
    published = cost_of('soft', 'nanodet', 3)
    assert published['head_over_dense'] == pytest.approx(2, rel=0.01)  # two full heads of four run
    assert 1.05 < published['multiply_adds_over_dense'] < 1.4
    for setting in ('soft, top-1', 'kernels, image'):
        cost = cost_of(setting, 'nanodet', 3)
        assert 1 <= cost['multiply_adds_over_dense'] < 1.01 and cost['parameters_over_dense'] > 1


@pytest.mark.parametrize('backbone', BACKBONES)
def test_every_backbone_makes_a_detector(plan, backbone):
    cfg = dataclasses.replace(plan, backbone=backbone).config('soft')
    import_modules_from_strings(**cfg.custom_imports)
    with mmdet_scope():
        model = MODELS.build(cfg.model)
        model.eval()
        levels = model.extract_feat(torch.zeros(1, 3, 64, 64))
    assert [level.shape[-1] for level in levels] == [8, 4, 2, 1, 1]
    trains = {name.partition('.')[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trains - {'backbone'} == {'bbox_head'}


def test_rows_tell_images_weights_and_schedules_apart(plan):
    other = dataclasses.replace(plan.folder, digest='other')
    changed = [
        dataclasses.replace(plan, folder=other),
        dataclasses.replace(plan, weights=dataclasses.replace(WEIGHTS, digest='other')),
        dataclasses.replace(plan, epochs=20),
        dataclasses.replace(plan, backbone='mobilenetv2'),
    ]
    assert len({one.fingerprint_of(START) for one in [plan, *changed]}) == 5
    moved = dataclasses.replace(plan, folder=dataclasses.replace(plan.folder, path='/elsewhere'))
    assert moved.fingerprint_of(START) == plan.fingerprint_of(START)
    assert len({plan.fingerprint_of(setting) for setting in SETTINGS}) == len(SETTINGS)


def write_truth(path: Path) -> Folder:
    """Four images, each with a small and a large object; ids that are no positions."""
    boxes = ([10, 10, 20, 20], [100, 100, 120, 150])
    objects = [(10 + i, 1 + k, box) for i in range(4) for k, box in enumerate(boxes)]
    content = coco_content(objects, range(10, 14), dict(enumerate(CLASSES, start=1)), (300, 300))
    (path / 'annotations').mkdir(parents=True)
    (path / 'annotations' / 'instances_val2017.json').write_text(json.dumps(content))
    return folder(path)


def write_detections(path: Path, images: int) -> Path:
    """As tools/test.py does: both objects of the first images, the small one alone of the others."""
    samples = []
    for i in (2, 0, 3, 1):  # in any order
        kept = 2 if i < images else 1
        boxes = np.array([[10, 10, 30, 30], [100, 100, 220, 250]], dtype=np.float32)[:kept]
        instances = {'bboxes': boxes, 'scores': np.full(kept, 0.9, np.float32), 'labels': np.arange(kept)}
        samples.append({'img_id': 10 + i, 'pred_instances': instances})
    path.write_bytes(pickle.dumps(samples))
    return path


def test_precision_of_planted_detections(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, 'RESAMPLES', 50)
    where = write_truth(tmp_path / 'fish')
    found = resampled(write_detections(tmp_path / 'all.pkl', 4), where)
    assert found['AP'] == pytest.approx(1) and found['AP_S'] == pytest.approx(1) and found['AP_M'] is None
    assert set(found['resampled']['AP'].split()) == {'10000'} and set(found['resampled']['AP_M'].split()) == {'-1'}
    half = resampled(write_detections(tmp_path / 'half.pkl', 2), where)
    # half of the large objects are found: 51 of the 101 recalls have precision 1
    assert half['AP_L'] == pytest.approx(51 / 101) and half['AP'] == pytest.approx((1 + 51 / 101) / 2)
    values = {int(value) for value in half['resampled']['AP_L'].split()}
    # resamples hold 0 to 4 images of the two
    assert values <= {0, *(round(1e4 * recalls / 101) for recalls in (26, 51, 76, 101))} and len(values) >= 3


def invented_report(seed: int = 0) -> dict:
    """A size report; the example lacks what a unit alone says."""
    report = make_example(seed=seed)
    for layer in report['layers']:
        for unit in ('detection', 'training'):
            layer['units'][unit].setdefault('verdict', 'size-sorted')
    return report


def test_the_record_keeps_both_readings_and_both_units():
    report = invented_report()
    layer = report['layers'][0]
    kept = summary_of(report)
    of_layer = kept['layers']['bbox_head.cls']
    assert of_layer['verdict'] == 'size-specialised' and of_layer['living'] == layer['utilisation']['living']
    for unit in ('detection', 'training'):
        measured = layer['units'][unit]
        assert of_layer['units'][unit]['relative_size']['mi_bits'] == measured['relative_size']['mi_bits']
        assert of_layer['units'][unit]['coco_bins']['mi_bits'] == measured['mi_given_level_bits']
    assert [one['expert'] for one in of_layer['forced']] == [0, 1, 2, 3]
    assert of_layer['forced'][2]['AP_S'] == layer['forced'][2]['AP_S']
    assert [one['k'] for one in kept['top_k']] == [row['k'] for row in report['ap']['top_k']]
    assert kept['swap']['AP'] == report['swap']['AP']
    json.dumps(kept, allow_nan=False)


def run(seed: int, value: float, report: dict | None = None) -> dict:
    """A run of the record, all sizes alike; images vary all runs alike."""
    shift = np.array([0.02, 0.0, -0.02, 0.01])
    values = dict.fromkeys(('AP', 'AP50', 'AP_S', 'AP_M', 'AP_L'), value)
    one = {'seed': seed, **values, 'curve': {'6': values}, 'freedom': dict.fromkeys(MEASURES, 80.0)}
    one['resampled'] = dict.fromkeys(MEASURES, packed(value + shift))
    return one if report is None else {**one, 'experts': report}


def row(setting: str, values: list[float], cost: float = 1.0, reports: list[dict] | None = None) -> dict:
    seeds = [run(seed, value, reports and reports[seed]) for seed, value in enumerate(values)]
    return {
        'data': 'fish',
        'backbone': 'nanodet',
        'setting': setting,
        'control': SETTINGS[setting].control,
        'fingerprint': '',
        'epochs': 6,
        **dict.fromkeys(('multiply_adds_over_dense', 'head_over_dense', 'parameters_over_dense'), cost),
        'seeds': seeds,
    }


def said(*rows: dict) -> str:
    return ' '.join(conclusion({one['setting']: one for one in rows}))


BASE = [0.30, 0.31, 0.32]


@pytest.mark.parametrize(
    ('values', 'cost', 'pays'),
    [
        ([0.33, 0.341, 0.349], 1.0, True),
        ([0.33, 0.341, 0.349], 1.1, False),  # not at equal cost
        ([0.33, 0.341], 1.0, False),  # two seeds
        ([0.36, 0.30, 0.33], 1.0, False),  # one lucky seed
        ([0.27, 0.281, 0.289], 1.0, False),
    ],
)
def test_a_mixture_pays_when_its_interval_says_so(values, cost, pays):
    assert ('experts pay at equal cost' in said(row(BASELINE, BASE), row('shards, image', values, cost))) is pays


def test_a_frozen_setting_is_compared_with_a_frozen_control():
    rows = row(BASELINE, BASE), row(HEAD_ONLY, [0.25, 0.26, 0.27]), row('soft, top-1', [0.28, 0.291, 0.299])
    assert '+3.0 AP' in said(*rows) and 'against "head continued"' in said(*rows)
    assert 'is open' in said(rows[0], rows[2])


def test_dense_training_that_has_not_ended_is_named():
    assert 'had not converged: further training changed it by +1.0' in said(
        row(START, [0.29, 0.30, 0.31]), row(BASELINE, BASE)
    )
    assert 'had converged' in said(row(START, [0.299, 0.309, 0.319]), row(BASELINE, BASE))


def record(*rows: dict) -> dict:
    return {
        'rows': list(rows),
        'command': 'python benchmarks/real_images.py',
        'machine': 'a machine',
        'versions': {'torch': '2'},
        'date': '2026-01-01',
        'size': SIZE,
        'learning_rates': {'start': 2e-3, 'more': 1e-3},
        'expected': ['Nothing.'],
        'data': {'fish': {'images': [6, 4], 'classes': list(CLASSES), 'source': 'drawn'}},
        'weights': {'nanodet': {'file': 'nanodet.json', 'source': 'its authors'}},
    }


def test_the_page_holds_every_row_the_lost_ones_too():
    reports = [summary_of(invented_report(seed)) for seed in range(3)]
    lost = row('soft', [0.20, 0.21, 0.22], 1.15, reports)
    text = page(record(row(START, BASE), row(BASELINE, BASE), row(HEAD_ONLY, BASE), lost))
    assert '| soft | 6 | 3 | 1.150 | 1.150 | 21.0 ± 1.0 | 21.0 ± 1.0 | -10.0 [-10.0, -10.0] |' in text
    assert '| soft | cls | detection |' in text and '| soft | reg | training |' in text
    alone = [one['AP_S'] for one in reports[0]['layers']['bbox_head.cls']['forced']]
    assert f'{100 * (max(alone) - min(alone)):.1f}, ' in text
    assert '| soft | 1: ' in text and '; 4: ' in text
    assert '- Nothing.' in text and 'drawn' in text and 'its authors' in text
    with_check = {'port_check': {'data': 'coco', 'images': 5, 'size': 416, 'published_AP': 0.229, **run(0, 0.25)}}
    assert 'AP 25.0' in page({**record(), **with_check}) and 'No run is finished' in page(record())


def test_the_page_is_that_of_the_record_and_the_settings_are_known():
    kept = json.loads((RECORDS / 'real_images.json').read_text(encoding='utf-8'))
    assert (RESULTS / 'real_images.md').read_text(encoding='utf-8') == page(kept)
    assert {one['setting'] for one in kept['rows']} <= set(SETTINGS)
    readme = README.read_text(encoding='utf-8')
    assert readme == fill(readme, NAME, results(kept))


def test_readme_shows_the_control_what_experts_change_and_the_swap():
    reports = [{'layers': {}, 'swap': {'AP': {'difference': -0.02, 'interval': [-0.03, -0.01]}}, 'top_k': []}] * 3
    lost = row('kernels, image', [0.20, 0.21, 0.22], reports=reports)
    lines = results(record(row(BASELINE, BASE), row('soft', BASE), lost)).splitlines()
    assert lines[2:5] == [
        '| fish | without experts | 3 | 31.0 ± 1.0 | - | - |',
        '| fish | mixed kernels, 8 copies | 3 | 21.0 ± 1.0 | -10.0 [-10.0, -10.0] | -2.0 (3 of 3) |',
        '',
    ]
    assert lines[5].startswith('fish: no mixture at equal cost is shown to be better')
    assert results(record()) == NOTHING


def test_rows_that_were_trained_in_another_way_go_and_others_stay(plan):
    mine, other = row('soft', BASE), {**row('soft', BASE), 'data': 'birds'}
    kept = record(mine, other)
    mine['fingerprint'] = plan.fingerprint_of('soft')
    script.drop_outdated(kept, [plan])
    assert [one['data'] for one in kept['rows']] == ['fish', 'birds']
    script.drop_outdated(kept, [dataclasses.replace(plan, epochs=3)])
    assert [one['data'] for one in kept['rows']] == ['birds']


def test_a_run_without_a_report_keeps_the_one_it_had(plan):
    reports = [{'layers': {}, 'swap': None, 'top_k': []}] * 2
    kept = record(row('soft', [0.2, 0.3], reports=reports))
    script.add(kept, 'soft', plan, run(1, 0.4))
    script.add(kept, START, plan, run(0, 0.5))
    assert [one['setting'] for one in kept['rows']] == [START, 'soft']  # in the order of the settings
    assert [one['AP'] for one in kept['rows'][1]['seeds']] == [0.2, 0.4]
    assert all('experts' in one for one in kept['rows'][1]['seeds'])
    assert kept['data']['fish']['classes'] == list(CLASSES)


def test_bad_input_is_one_message(tmp_path, capsys):
    (tmp_path / 'photographs').mkdir()
    options = ['--record', str(tmp_path / 'record.json'), '--page', str(tmp_path / 'page.md')]
    code = script.main(['--data-root', str(tmp_path / 'photographs'), '--weights', 'nanodet.json', *options])
    text = capsys.readouterr().err
    assert code == 2 and text.startswith('error: ') and 'COCO layout' in text and len(text.splitlines()) == 1
    with pytest.raises(SystemExit):
        script.main(['--data-root', 'x', '--check-port'])
    assert 'expected --backbone nanodet, its --weights' in capsys.readouterr().err
