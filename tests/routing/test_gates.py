"""Gates against plain formulas, and their precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moe_det.routing import ConvGAPGate, GAPLinearGate, Gate, TwoConvGAPGate
from moe_det.routing.gates import global_average

GATES = [GAPLinearGate, ConvGAPGate, TwoConvGAPGate]


def test_gap_linear_gate():
    # channel means 2 and 1; logits 1*2 + 0*1 + 3 and 2*2 - 1*1 + 0
    gate = GAPLinearGate(2, 2)
    gate.load_state_dict({'fc.weight': torch.tensor([[1.0, 0], [2, -1]]), 'fc.bias': torch.tensor([3.0, 0])})
    feature = torch.tensor([[[[0.0, 4.0]], [[1.0, 1.0]]]])
    torch.testing.assert_close(gate(feature), torch.tensor([[5.0, 3.0]]))


def test_conv_gap_gate_is_linear_and_unpadded():
    # no nonlinearity: GAP commutes with the linear layers, so the logits are a mean over all 3x3 patches
    gate = ConvGAPGate(2, 3, hidden_channels=5).double()
    feature = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    patches = F.unfold(feature, 3).mean(2)
    hidden = patches @ gate.conv.weight.flatten(1).t() + gate.conv.bias
    torch.testing.assert_close(gate(feature), hidden @ gate.fc.weight.t() + gate.fc.bias)


@pytest.mark.parametrize('size', [(1, 1), (2, 5), (4, 1), (2, 2)])
def test_conv_gap_gate_pads_maps_smaller_than_its_kernel_to_three_pixels(size):
    gate = ConvGAPGate(2, 3, hidden_channels=5).double()
    feature = torch.randn(2, 2, *size, dtype=torch.float64)
    height, width = max(3, size[0]), max(3, size[1])
    padded = torch.zeros(2, 2, height, width, dtype=torch.float64)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    padded[:, :, top : top + size[0], left : left + size[1]] = feature
    torch.testing.assert_close(gate(feature), gate(padded), rtol=0, atol=0)


def test_two_conv_gap_gate():
    gate = TwoConvGAPGate(3, 4, hidden_channels=6).double()
    feature = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    hidden = F.conv2d(feature, gate.conv1.weight, gate.conv1.bias, padding=1)
    mean = hidden.mean((1, 2, 3), keepdim=True)
    deviation = (hidden.var((1, 2, 3), unbiased=False, keepdim=True) + gate.norm.eps).sqrt()
    hidden = (hidden - mean) / deviation  # the norm's own scale and shift start at 1 and 0
    expected = F.conv2d(hidden, gate.conv2.weight, gate.conv2.bias, padding=1).mean((2, 3))
    torch.testing.assert_close(gate(feature), expected)


def test_large_half_maps_do_not_overflow_the_mean():
    # a sum in fp16 ends at 65504; the mean of 64 x 64 values of 1000 is 1000
    gate = GAPLinearGate(1, 1)
    gate.load_state_dict({'fc.weight': torch.ones(1, 1), 'fc.bias': torch.zeros(1)})
    assert gate.half()(torch.full((1, 1, 64, 64), 1000.0).half()).item() == 1000


def test_a_gate_without_logits_says_so():
    with pytest.raises(NotImplementedError, match='EmptyGate does not define logits'):
        type('EmptyGate', (Gate,), {})(1, 1)(torch.zeros(1, 1, 1, 1))


def test_the_gradient_of_the_average_is_expanded_instead_of_written_pixel_by_pixel():
    strides = []
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) * 1
    maps.register_hook(lambda gradient: strides.append(gradient.stride()[2:]))
    average = global_average(maps)
    torch.testing.assert_close(average, maps.mean((2, 3)))
    (average * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert strides[0] == (0, 0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
def test_the_average_of_a_single_pixel_is_that_pixel_in_its_own_precision_or_fp32(dtype):
    maps = torch.randn(5, 3, 1, 1, dtype=dtype)
    average = global_average(maps)
    assert average.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    torch.testing.assert_close(average, maps.to(average.dtype).flatten(1), rtol=0, atol=0)
