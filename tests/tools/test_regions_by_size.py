"""size_specialization.py on a Faster R-CNN whose gate is planted: on the size within the level, or on the level."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from small_files import write_own_boxes
from small_regions import FINEST, LAYER, boxes_are_regions, faster_config, gates_told, level_alone, within_level

IMAGES = 40


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    """Config, checkpoint and data, in which some of the detector's own boxes are the ground truth."""
    folder = tmp_path_factory.mktemp('faster')
    write_own_boxes(folder, 'faster.py', faster_config(), boxes_are_regions, IMAGES)
    return folder


def test_a_gate_that_sorts_within_the_level_is_found(size_report, place, tmp_path, monkeypatch):
    with gates_told(within_level, monkeypatch):
        results = size_report(place / 'faster.py', place / 'planted.pth', 16, 32)
    (layer,) = results['layers']
    assert (layer['name'], layer['unit'], layer['main_unit']) == (LAYER, 'roi', 'detection')
    assert layer['units']['detection']['sorts'] is layer['units']['training']['sorts'] is True
    assert layer['units']['training']['n_objects'] == 4 * IMAGES
    assert results['conditioned_on'].startswith('the level of the pyramid that a region is pooled from')
    assert layer['swap'] is not None and layer['routes']['between_levels'] is None
    lines = list(csv.DictReader((tmp_path / 'regions.csv').open()))
    assert sum(level['detections'] for level in results['levels']) == len(lines) > 10 * IMAGES
    area = np.array([float(line['area']) for line in lines])
    above = np.log2(np.sqrt(area) / FINEST) % 1 - 0.5
    clear = (np.abs(above) < 0.49) & (np.abs(above) > 0.01) & (area > FINEST**2)
    expert = np.array([int(line[LAYER]) for line in lines])
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(expert[clear], above[clear] > 0)


def test_a_gate_that_sees_the_level_alone_is_not_said_to_sort(size_report, place, monkeypatch):
    with gates_told(level_alone, monkeypatch):
        (layer,) = size_report(place / 'faster.py', place / 'planted.pth', 16, 32, options=('--no-forcing',))['layers']
    assert layer['units']['detection']['sorts'] is layer['units']['training']['sorts'] is False
    assert layer['verdict'] not in ('size-specialised', 'size-sorted')
    assert layer['level_mi_bits'] > 0.3 and layer['level_p_value'] < 0.01
