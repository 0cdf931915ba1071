"""robustness.py on a small detector whose own detections are the ground truth, beside one without experts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from small_files import TINY_CONFIG, write_own_boxes
from small_models import build, config, spread_weights
from torch import nn

from moe_det.analysis.ground_truth import GroundTruth
from moe_det.probing.findings import detection_table
from moe_det.running.launch import load_config
from moe_det.running.trained_model import load_trained_model, test_batches

TOOL = 'analysis_tools/robustness.py'
IMAGES = 2


def small_config(**moe) -> Config:
    cfg = config(TINY_CONFIG)
    cfg.model.bbox_head.num_classes = 3
    if moe:
        cfg.model.bbox_head.update(type='MoERetinaHead', moe=moe)
    return cfg


def planted(cfg: Config) -> nn.Module:
    return spread_weights(build(cfg.model)).eval()


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    """Two folders with config and checkpoint; the data are those of the first."""
    folder = tmp_path_factory.mktemp('attacked')
    write_own_boxes(folder / 'moe', 'mine.py', small_config(num_experts=2, top_k=1, width=0.5), planted, IMAGES)
    write_own_boxes(folder / 'dense', 'dense.py', small_config(), planted, IMAGES)
    return folder


@pytest.fixture
def attack(tool, place, tmp_path, capsys):
    def run(*options: str) -> tuple[int, dict | None, str]:
        out = tmp_path / 'out.json'
        capsys.readouterr()
        main = tool(TOOL).main
        status = main(
            [str(place / 'moe/mine.py'), str(place / 'moe/planted.pth'), '--device', 'cpu', '--out', str(out), *options]
        )
        captured = capsys.readouterr()
        return status, json.loads(out.read_text()) if out.is_file() else None, captured.out + captured.err

    return run


def test_attacks_lower_ap_and_rows_are_compared(attack, place):
    dense = ['--also', str(place / 'dense/dense.py'), str(place / 'dense/planted.pth')]
    few = ['--corruptions', 'none', '--eps', '8', '--rows', 'own', 'forced']
    few += ['--universal-images', '1', '--universal-passes', '1']
    names = ['noise', 'fgsm', 'pgd-10', 'universal', 'gate-entropy', 'worst-expert']
    status, found, text = attack(*dense, *few, '--attacks', *names)
    assert status == 0, text
    assert found['rows'] == ['mine', 'expert 0', 'expert 1', 'dense']
    cfg = load_config(place / 'moe/mine.py')
    model = load_trained_model(cfg, str(place / 'moe/planted.pth'), 'cpu')
    tables, ids = [], []
    with torch.no_grad():
        for image_ids, batch in test_batches(cfg):
            results = [sample.pred_instances for sample in model.test_step(batch)]
            tables.append(detection_table(results, range(len(ids), len(ids) + len(image_ids))))
            ids += image_ids
    truth = GroundTruth(place / 'moe/annotations/truth.json', ids)
    clean = truth.average_precision(torch.cat([torch.from_numpy(t) for t in tables]).numpy())
    assert found['clean']['mine']['ap']['AP'] == pytest.approx(clean['AP'], abs=1e-6) and clean['AP'] > 0.1
    entries = {(e['attack'], e['source'], e['victim']): e for e in found['attacks']}
    assert len(entries) == len(found['attacks'])
    own = entries['pgd-10', 'mine', 'mine']
    assert own['ap']['AP'] < clean['AP']
    assert own['drop'] == pytest.approx(1 - own['ap']['AP'] / clean['AP'])
    assert set(own['agreement']) == {'bbox_head.cls', 'bbox_head.reg'}
    assert not entries['pgd-10', 'expert 0', 'expert 0']['agreement']
    transfers = {(s, v) for a, s, v in entries if a == 'pgd-10'}
    assert transfers == {(s, v) for s in found['rows'] for v in found['rows']}
    assert {s for a, s, _ in entries if a == 'gate-entropy'} == {'mine'}
    worst = min(range(2), key=lambda e: found['clean'][f'expert {e}']['ap']['AP'])
    assert found['worst_expert'] == worst and found['universal'] == {'images': 1, 'of_these_evaluated': 1}
    assert '## Attacks, eps 8/255, loss: both' in text and '## Transfer of pgd-10' in text and '| dense ' in text
    assert '## Signs of gradient masking' in text and '## Routing agreement' in text


def test_corruptions_by_severity(attack):
    pytest.importorskip('imagecorruptions', reason='pip install imagecorruptions-imaug')
    contrast = ['--corruptions', 'contrast', '--severities', '1', '5']
    options = ['--attacks', 'none', *contrast, '--rows', 'own', '--limit', '2']
    status, found, text = attack(*options)
    assert status == 0 and found['images'] == 2 and found['attacks'] == []
    low, high = found['corruptions']
    assert (low['severity'], high['severity'], low['row']) == (1, 5, 'mine')
    assert high['ap']['AP'] != low['ap']['AP']
    mean = 50 * (low['ap']['AP'] + high['ap']['AP'])
    assert f'| {mean:.1f} ' in text and 'rPC' in text and set(low['agreement']) == {'bbox_head.cls', 'bbox_head.reg'}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--attacks', 'worst-expert', '--rows', 'own'], 'is known by --rows forced alone'),
        (['--attacks', 'gate-entropy', '--rows', 'forced'], 'no row has gates that decide'),
        (['--attacks', 'worst-expert', '--rows', 'forced'], 'no row of the first detector has gates that decide'),
        (['--also', 'missing.py', 'missing.pth'], 'missing.py'),
    ],
)
def test_mistakes_are_one_message(attack, options, message):
    status, found, text = attack('--corruptions', 'none', '--limit', '1', *options)
    assert status == 2 and found is None and message in text


def test_detectors_with_other_pipelines_are_not_compared(attack, place):
    text = (place / 'dense/dense.py').read_text().replace('keep_ratio=True', 'keep_ratio=False')
    (place / 'dense/other.py').write_text(text)
    also = ['--also', str(place / 'dense/other.py'), str(place / 'dense/planted.pth')]
    status, _, text = attack('--corruptions', 'none', *also)
    assert status == 2 and 'its test pipeline differs' in text
