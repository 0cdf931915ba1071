"""uncertainty.py on a small detector some of whose own detections are the ground truth."""

from __future__ import annotations

import csv
import json
import math

import pytest
from small_files import TINY_CONFIG, plant_logits, write_own_boxes
from small_models import build, config, spread_weights
from torch import nn

TOOL = 'analysis_tools/uncertainty.py'


def planted(cfg) -> nn.Module:
    model = spread_weights(build(cfg.model)).eval()
    plant_logits(model, 0.0, math.log(3))  # probabilities 1/4 and 3/4
    return model


def test_each_detection_has_its_doubts(tool, tmp_path, capsys):
    cfg = config(TINY_CONFIG)
    cfg.model.bbox_head.update(type='MoERetinaHead', num_classes=3, moe=dict(num_experts=2, top_k=1, width=0.5))
    write_own_boxes(tmp_path / 'data', 'mine.py', cfg, planted, 2)
    where = [str(tmp_path / 'data/mine.py'), str(tmp_path / 'data/planted.pth'), '--out-dir', str(tmp_path / 'out')]
    options = ['--device', 'cpu', '--score-thr', '0.0']
    assert tool(TOOL).main([*where, *options]) == 0
    found = json.loads((tmp_path / 'out/uncertainty.json').read_text())
    lines = list(csv.DictReader((tmp_path / 'out/uncertainty.csv').open()))
    clean = found['kinds']['clean']
    assert len(lines) == clean['calibration']['detections'] == 2 * 20 and found['experts'] == 2
    assert 4 <= sum(int(line['correct']) for line in lines) <= 8  # four objects in each image
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    for layer in ('bbox_head.cls', 'bbox_head.reg'):
        assert all(float(line[f'gate_entropy {layer}']) == pytest.approx(entropy, rel=1e-3) for line in lines)
    assert any(float(line['score_std']) > 0.01 for line in lines) and any(
        float(line['box_disagreement']) for line in lines
    )
    scores = [float(line['score']) for line in lines]
    precision = sum(int(line['correct']) for line in lines) / len(lines)
    weighted = sum(b['detections'] * b['score'] for b in clean['calibration']['bins']) / len(lines)
    assert weighted == pytest.approx(sum(scores) / len(scores), abs=1e-3)
    assert sum(b['detections'] * b['precision'] for b in clean['calibration']['bins']) == pytest.approx(precision * 40)
    assert (tmp_path / 'out/reliability.png').is_file() and 'PAvPU' in capsys.readouterr().out
