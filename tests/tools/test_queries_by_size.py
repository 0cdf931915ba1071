"""size_specialization.py on a DETR whose gate is planted: small boxes go to expert 0, large ones to expert 1."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from small_files import write_own_boxes
from small_models import LAYER, detr_config, planted_detr

from moe_det.routing.gates import GAPLinearGate

IMAGES = 60


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    """Config, checkpoint and data, in which some of the detector's own boxes are the ground truth."""
    folder = tmp_path_factory.mktemp('detr')
    write_own_boxes(folder, 'detr.py', detr_config(), planted_detr, IMAGES)
    return folder


def test_the_planted_gate_is_found(size_report, place, tmp_path):
    results = size_report(place / 'detr.py', place / 'planted.pth', 10, 14)
    (layer,) = results['layers']
    assert (layer['name'], layer['unit'], layer['main_unit']) == (LAYER, 'query', 'detection')
    assert layer['units']['detection']['sorts'] is layer['units']['training']['sorts'] is True
    assert layer['units']['training']['n_objects'] == 4 * IMAGES
    table = np.array(layer['expert_by_size'])
    assert min(table[0, 0] / table[:, 0].sum(), table[1, 2] / table[:, 2].sum()) > 0.85  # near boxes stand in at times
    assert layer['random_gates']['quantile'] > 0.95
    # experts that do nothing cannot be missed
    assert layer['verdict'] == 'size-sorted' and layer['swap']['AP']['difference'] == 0
    assert layer['plain'].startswith('In part: its experts get objects of different size, ')
    assert 'level' not in layer['plain'] + layer['sentence']
    assert results['conditioned_on'].startswith('the layer alone')
    assert results['levels'][0]['name'] == 'all queries'
    assert results['levels'][0]['detections'] == 10 * IMAGES
    page = (tmp_path / 'report.html').read_text()
    assert 'given the layer alone. Object queries have no level of a pyramid' in page
    lines = list(csv.DictReader((tmp_path / 'queries.csv').open()))
    assert len(lines) == 10 * IMAGES and {line[LAYER] for line in lines} == {'0', '1'}
    assert len({line['query'] for line in lines}) > 10
    matched = [line for line in lines if line['annotation_id']]
    assert len(matched) == layer['n_objects']
    assert all(line[LAYER] == '0' for line in lines if float(line['area']) < 100)
    assert all(line[LAYER] == '1' for line in lines if float(line['area']) > 196)


def test_a_gate_that_chooses_at_random_is_not(size_report, place, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(GAPLinearGate, 'logits', lambda self, x: torch.randn(len(x), 2, generator=generator))
    (layer,) = size_report(place / 'detr.py', place / 'planted.pth', 10, 14, options=('--no-forcing',))['layers']
    assert layer['units']['detection']['sorts'] is layer['units']['training']['sorts'] is False
    assert layer['verdict'] == 'not specialised' and layer['relative_size']['p_value'] > 0.01
    assert layer['plain'] == 'No: nothing shows that its experts differ by size.'
