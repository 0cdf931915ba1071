"""Disagreement of experts, calibration and PAvPU, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moe_det.analysis.uncertainty import binary_entropy, box_disagreement, calibration, certainty, mutual_information


def test_mutual_information_is_what_the_expert_would_tell():
    # experts that are sure of opposite answers: one bit; experts that agree: nothing, whatever they say
    scores = np.array([[0.0, 0.3, 0.5, 0.2], [1.0, 0.3, 0.5, 0.6]])
    found = mutual_information(scores)
    assert found[:3] == pytest.approx([math.log(2), 0, 0], abs=1e-9)
    by_hand = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    by_hand += 0.5 * (0.2 * math.log(0.2) + 0.8 * math.log(0.8) + 0.6 * math.log(0.6) + 0.4 * math.log(0.4))
    assert found[3] == pytest.approx(by_hand)
    assert binary_entropy(np.array([0.0, 0.5, 1.0])) == pytest.approx([0, math.log(2), 0], abs=1e-9)


def test_disagreement_about_boxes_is_the_mean_over_pairs():
    one, half, far = [0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]
    boxes = np.array([[one, one], [half, one], [far, one]], dtype=float)
    # IoU of the pairs: 1/2, 0, 0 for the first detection, 1 for all of the second
    assert box_disagreement(boxes) == pytest.approx([(0.5 + 1 + 1) / 3, 0])
    assert box_disagreement(boxes[:1]) == pytest.approx([0, 0])
    assert box_disagreement(np.zeros((2, 1, 4))) == pytest.approx([0])


def test_calibration_error_of_two_bins():
    scores = np.array([0.1, 0.3, 0.8, 0.9, 1.0])
    correct = np.array([False, True, True, True, False])
    found = calibration(scores, correct, bins=2)
    # bin 0: mean score 0.2, precision 1/2; bin 1: mean score 0.9, precision 2/3
    gaps = 0.3, 0.9 - 2 / 3
    assert found['d_ece'] == pytest.approx(2 / 5 * gaps[0] + 3 / 5 * gaps[1])
    assert found['d_mce'] == pytest.approx(0.3) and found['detections'] == 5
    assert [entry['detections'] for entry in found['bins']] == [2, 3]
    assert (found['bins'][1]['low'], found['bins'][1]['high']) == (0.5, 1.0)


def test_scores_that_are_frequencies_are_calibrated():
    scores = np.repeat([0.25, 0.75], 4)
    correct = np.array([1, 0, 0, 0, 1, 1, 1, 0], dtype=bool)
    assert calibration(scores, correct)['d_ece'] == pytest.approx(0)
    assert calibration(scores, ~correct)['d_ece'] == pytest.approx(0.5)


def test_pavpu_divides_by_all_detections():
    #          certain and right (2), certain and wrong (1), uncertain and right (1), uncertain and wrong (4)
    doubts = np.array([0.1, 0.2, 0.1, 0.9, 0.9, 0.8, 0.7, 0.6])
    correct = np.array([True, True, False, True, False, False, False, False])
    found = certainty(doubts, correct, threshold=0.5)
    assert found['pavpu'] == pytest.approx((2 + 4) / 8)
    # 7 are certain or inaccurate
    assert found['pavpu'] != pytest.approx((2 + 4) / 7)
    assert found['accurate_if_certain'] == pytest.approx(2 / 3)
    assert found['uncertain_if_inaccurate'] == pytest.approx(4 / 5)
    assert certainty(doubts, correct)['threshold'] == pytest.approx(0.65)  # the median: half are uncertain


def test_without_detections_nothing_is_known():
    none = np.zeros(0)
    assert calibration(none, none.astype(bool)) == {'d_ece': None, 'd_mce': None, 'detections': 0, 'bins': []}
    assert certainty(none, none.astype(bool))['pavpu'] is None
    assert certainty(np.array([1.0]), np.array([True]), 2.0)['uncertain_if_inaccurate'] is None
