"""What the profile of the speed benchmark attributes to whom."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from speed.profiles import (
    BETWEEN,
    CONVOLUTIONS,
    OTHERS,
    SMALL_CONVOLUTIONS,
    by_kind,
    kind_of,
    largest_differences,
    profile_in_turn,
    profiled,
)


def step(mark) -> None:
    """A convolution and its backward, then a wait and a few sums."""
    image, weight = torch.randn(2, 8, 64, 64), torch.randn(8, 8, 3, 3, requires_grad=True)
    loss = F.conv2d(image, weight).sum()
    mark('forward')
    loss.backward()
    mark('backward')
    time.sleep(0.05)
    for _ in range(20):
        torch.ones(100).add_(1)
    mark('optimizer')


def test_operators_belong_to_the_phase_that_runs_them():
    begin = time.perf_counter()
    spent = profiled(step, 'cpu')
    wall = (time.perf_counter() - begin) * 1e3
    phases = {operator: {phase for phase, name in spent if name == operator} for _, operator in spent}
    assert phases['aten::convolution_backward'] == {'backward'}
    assert phases['aten::conv2d'] == {'forward'} and 'optimizer' in phases['aten::add_']
    assert all(phase in ('forward', 'backward', 'optimizer') for phase, _ in spent)
    # what sleeps is no operator
    assert spent['optimizer', BETWEEN] >= 50 > sum(ms for key, ms in spent.items() if key[1] != BETWEEN)
    assert sum(spent.values()) <= wall


def test_a_run_without_phases_is_inference():
    assert {phase for phase, _ in profiled(lambda mark: torch.ones(3).add_(1), 'cpu')} == {'inference'}


@pytest.mark.parametrize(
    ('operator', 'kind'),
    [
        ('aten::mkldnn_convolution', CONVOLUTIONS),
        ('autograd::engine::evaluate_function: ConvolutionBackward0', CONVOLUTIONS),
        ('aten::_slow_conv2d_backward', SMALL_CONVOLUTIONS),
        ('aten::add_', OTHERS),
    ],
)
def test_kinds(operator, kind):
    assert kind_of(operator) == kind


def test_kinds_add_up_and_differences_are_sorted():
    dense = {('forward', 'aten::conv2d'): 5.0, ('forward', 'aten::add'): 1.0, ('backward', BETWEEN): 2.0}
    ours = {('forward', 'aten::conv2d'): 4.5, ('forward', 'aten::neg'): 3.0, ('backward', BETWEEN): 2.0}
    assert by_kind(ours) == {
        'forward': {CONVOLUTIONS: 4.5, SMALL_CONVOLUTIONS: 0, OTHERS: 3.0, BETWEEN: 0},
        'backward': {CONVOLUTIONS: 0, SMALL_CONVOLUTIONS: 0, OTHERS: 0, BETWEEN: 2.0},
    }
    found = largest_differences(ours, dense, count=3)
    assert [(row['operator'], row['ms'] - row['dense_ms']) for row in found] == [
        ('aten::neg', 3.0), ('aten::add', -1.0), ('aten::conv2d', -0.5),
    ]  # fmt: skip


def test_profiles_are_medians_without_warm_up():
    waits = iter([0.5, 0.02, 0.3, 0.04])  # the first is the warm-up, the third round was disturbed
    found = profile_in_turn({'run': lambda mark: time.sleep(next(waits))}, rounds=3, warm_up=1, device='cpu')
    assert 40 <= found['run']['inference', BETWEEN] < 300
