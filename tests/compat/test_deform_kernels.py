"""Deformable convolution on torchvision, called through mmcv.ops, against a naive sum over taps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import deform_conv2d, modulated_deform_conv2d
from torch.autograd import gradcheck

from moe_det.compat.ops import ops_source

pytestmark = pytest.mark.skipif(ops_source() != 'torchvision', reason="mmcv's own compiled operators are in use")

GROUPS, DEFORM_GROUPS, STRIDE, PADDING, DILATION = 2, 2, (2, 1), (1, 2), (1, 2)
SHAPE = (STRIDE, PADDING, DILATION, GROUPS, DEFORM_GROUPS)


def tensors(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Input (2, 4, 5, 6), kernel 3x2; offsets that keep samples between pixels."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    height, width = (5 + 2 - 3) // 2 + 1, (6 + 4 - 3) // 1 + 1
    return {
        'input': draw(2, 4, 5, 6) - 0.5,
        'offset': draw(2, 2 * DEFORM_GROUPS * 6, height, width) * 0.8 + 0.1,
        'mask': draw(2, DEFORM_GROUPS * 6, height, width),
        'weight': draw(6, 4 // GROUPS, 3, 2) - 0.5,
        'bias': draw(6),
    }


def bilinear(image: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """The value of a map (h, w) between its pixels, 0 outside."""
    total = image.new_zeros(())
    for row in (int(y // 1), int(y // 1) + 1):
        for column in (int(x // 1), int(x // 1) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total = total + image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def naive(input, offset, mask, weight, bias) -> torch.Tensor:
    """Sum over channels and taps, each sampled where its offset says."""
    images, _, height, width = offset.shape
    output = input.new_zeros(images, weight.shape[0], height, width)
    per_group, per_deform = weight.shape[1], input.shape[1] // DEFORM_GROUPS
    for n, out, row, column in torch.cartesian_prod(*map(torch.arange, output.shape)).tolist():
        total = bias[out]
        first = out // (weight.shape[0] // GROUPS) * per_group
        for c in range(per_group):
            channel = first + c
            deform = channel // per_deform
            for tap in range(6):
                at = (deform * 6 + tap) * 2
                y = row * STRIDE[0] - PADDING[0] + tap // 2 * DILATION[0] + float(offset[n, at, row, column])
                x = column * STRIDE[1] - PADDING[1] + tap % 2 * DILATION[1] + float(offset[n, at + 1, row, column])
                scale = mask[n, deform * 6 + tap, row, column]
                total = total + weight[out, c, tap // 2, tap % 2] * scale * bilinear(input[n, channel], y, x)
        output[n, out, row, column] = total
    return output


def test_modulated_convolution_is_the_sum_over_taps():
    given = tensors()
    found = modulated_deform_conv2d(*given.values(), *SHAPE)
    torch.testing.assert_close(found, naive(**given), rtol=1e-10, atol=1e-10)


def test_plain_convolution_is_that_with_a_mask_of_ones():
    given = tensors()
    expected = naive(**{**given, 'mask': torch.ones_like(given['mask']), 'bias': torch.zeros(6, dtype=torch.float64)})
    found = deform_conv2d(given['input'], given['offset'], given['weight'], *SHAPE)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_without_offsets_it_is_a_convolution():
    given = tensors()
    plain = F.conv2d(given['input'], given['weight'], None, STRIDE, PADDING, DILATION, GROUPS)
    found = deform_conv2d(given['input'], torch.zeros_like(given['offset']), given['weight'], *SHAPE)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('with_bias', [True, False])
def test_gradients_of_the_modulated_convolution(with_bias):
    given = [value[..., :2] if name in ('offset', 'mask') else value for name, value in tensors().items()]
    given[0] = given[0][:1, :, :, :1]  # one column: an output of width 2
    given = [x[:1] if i < 3 else x for i, x in enumerate(given)]
    leaves = [x.clone().requires_grad_() for x in given[: 5 if with_bias else 4]]
    bias = [] if with_bias else [None]
    padding = (1, 2)
    shape = (STRIDE, padding, (1, 3), GROUPS, DEFORM_GROUPS)
    assert gradcheck(lambda *args: modulated_deform_conv2d(*args, *bias, *shape), leaves)


def test_gradients_of_the_plain_convolution():
    given = tensors()
    leaves = [given[name].clone().requires_grad_() for name in ('input', 'offset', 'weight')]
    upstream = torch.randn_like(deform_conv2d(*leaves, *SHAPE))
    found = torch.autograd.grad(deform_conv2d(*leaves, *SHAPE), leaves, upstream)
    ones, zeros = torch.ones_like(given['mask']), torch.zeros(6, dtype=torch.float64)
    output = modulated_deform_conv2d(leaves[0], leaves[1], ones, leaves[2], zeros, *SHAPE)
    torch.testing.assert_close(found, torch.autograd.grad(output, leaves, upstream), rtol=1e-12, atol=1e-12)


def test_half_precision_is_rounded_once():
    given = tensors(torch.float16)
    exact = modulated_deform_conv2d(*[x.float() for x in given.values()], *SHAPE)
    found = modulated_deform_conv2d(*given.values(), *SHAPE)
    assert found.dtype == torch.float16
    assert torch.equal(found, exact.half())
