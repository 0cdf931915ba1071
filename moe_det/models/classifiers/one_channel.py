"""The first layer of a small network on grey images, which PyTorch's convolution and pooling are slow at on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _LargestOfFour(torch.autograd.Function):
    """max(0, the largest of four), whose gradient goes to the first of equals, as in max-pooling and ReLU."""

    @staticmethod
    def forward(ctx, four: Tensor) -> Tensor:
        a, b, c, d = four.unbind(0)
        upper, lower = torch.maximum(a, b), torch.maximum(c, d)
        largest = torch.maximum(upper, lower).relu_()
        ctx.save_for_backward(a >= b, c >= d, upper >= lower, largest > 0)
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        a_first, c_first, is_upper, positive = ctx.saved_tensors
        gradient = gradient * positive
        of_four = gradient.new_empty((4, *gradient.shape))
        upper = gradient * is_upper
        for at, value, first in ((0, upper, a_first), (2, gradient - upper, c_first)):
            torch.mul(value, first, out=of_four[at])
            torch.sub(value, of_four[at], out=of_four[at + 1])
        return of_four


def is_faster(x: Tensor, norm: nn.Module | None) -> bool:
    """Whether :func:`conv_pool` serves these images: grey, on the CPU, and no gradient is wanted for them."""
    if x.device.type != 'cpu' or x.shape[1] != 1 or (norm is not None and (x.shape[2] % 2 or x.shape[3] % 2)):
        return False
    return not (x.requires_grad or torch.compiler.is_compiling())


def conv_pool(x: Tensor, weight: Tensor, bias: Tensor, padding: int, norm: nn.BatchNorm2d | None = None) -> Tensor:
    """3x3 convolution, norm, 2x2 max-pooling and ReLU of grey images; the same numbers, rounding apart.

    The four pixels that are pooled together see a window of 4x4: one matrix product gives all of them, from 16 shifted
    copies of the images, and pooling takes the largest of four tensors.

    Args:
        x: (N, 1, H, W).
        weight: (C, 1, 3, 3).
        bias: (C,).
        padding: zero padding of the convolution.
        norm: BatchNorm of the convolution's output; H and W must be even then: pooling would drop pixels that it sees.

    Returns:
        (N, C, (H + 2 padding - 2) // 2, likewise), in memory with C first.
    """
    x = F.pad(x, (padding,) * 4)[:, 0] if padding else x[:, 0]
    height, width = ((length - 2) // 2 for length in x.shape[1:])
    windows = torch.stack([x[:, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(4) for j in range(4)])
    kernels = torch.cat([F.pad(weight, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)])
    four = torch.addmm(bias.repeat(4)[:, None], kernels.flatten(1), windows.flatten(1))
    four = four.unflatten(0, (4, -1))  # (4, C, N * height * width)
    if norm is not None:
        four = norm(four[..., None])[..., 0]
    return _LargestOfFour.apply(four).unflatten(1, (len(x), height, width)).transpose(0, 1)
