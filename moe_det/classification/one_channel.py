"""The first layer of a small network on grey images, which PyTorch's convolution and pooling are slow at on a CPU."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _LargestOfFour(torch.autograd.Function):
    """The largest of four, whose gradient goes to the first of equals, as in max-pooling.

    What was chosen is kept as 0 and 1 of the values' own type: a CPU multiplies by booleans three times as slowly.
    """

    @staticmethod
    def forward(ctx, four: Tensor) -> Tensor:
        a, b, c, d = four.unbind(0)
        upper, lower = torch.maximum(a, b), torch.maximum(c, d)
        chosen = four.new_empty((3, *a.shape))
        for at, (first, second) in enumerate(((a, b), (c, d), (upper, lower))):
            torch.ge(first, second, out=chosen[at])
        ctx.save_for_backward(chosen)
        return torch.maximum(upper, lower, out=upper)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        a_first, c_first, is_upper = ctx.saved_tensors[0]
        of_four = gradient.new_empty((4, *gradient.shape))
        upper = gradient * is_upper
        for at, value, first in ((0, upper, a_first), (2, gradient - upper, c_first)):
            torch.mul(value, first, out=of_four[at])
            torch.sub(value, of_four[at], out=of_four[at + 1])
        return of_four


def is_faster(x: Tensor, norm: nn.Module | None) -> bool:
    """Whether :func:`conv_pool` serves these images: grey, on the CPU, and no gradient is wanted for them."""
    if x.device.type != 'cpu' or x.shape[1] != 1:
        return False
    if norm is not None and (type(norm) is not nn.BatchNorm2d or x.shape[2] % 2 or x.shape[3] % 2):
        return False  # a norm over several processes sees other images too
    return not (x.requires_grad or torch.compiler.is_compiling())


def conv_pool(x: Tensor, weight: Tensor, bias: Tensor, padding: int, norm: nn.BatchNorm2d | None = None) -> Tensor:
    """3x3 convolution, norm, 2x2 max-pooling and ReLU of grey images; the same numbers, rounding apart.

    The four pixels that are pooled together see a window of 4x4: one matrix product gives all of them, from 16 shifted
    copies of the images, and pooling takes the largest of four tensors. A norm becomes part of the convolution.

    Args:
        x: (N, 1, H, W).
        weight: (C, 1, 3, 3).
        bias: (C,).
        padding: zero padding of the convolution.
        norm: BatchNorm of the convolution's output; H and W must be even then: pooling would drop pixels that it sees.

    Returns:
        (N, C, (H + 2 padding - 2) // 2, (W + 2 padding - 2) // 2), in memory with C first.
    """
    x = F.pad(x, (padding,) * 4)[:, 0] if padding else x[:, 0]
    height, width = ((length - 2) // 2 for length in x.shape[1:])
    windows = torch.stack([x[:, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(4) for j in range(4)])
    windows = windows.flatten(1)  # (16, N * height * width)
    if norm is not None:
        weight, bias = _normalised(weight, bias, norm, windows)
    kernels = torch.cat([F.pad(weight, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)])
    four = torch.addmm(bias.repeat(4)[:, None], kernels.flatten(1), windows).unflatten(0, (4, -1))
    return _LargestOfFour.apply(four).relu_().unflatten(1, (len(x), height, width)).transpose(0, 1)


def _normalised(weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of convolution and norm in one, which moves its running statistics while it trains.

    A convolution is linear: mean and variance of its output follow from those of the 3x3 windows, 9 means and 9x9
    covariances, without computing the output.

    Args:
        weight: (C, 1, 3, 3).
        bias: (C,).
        norm: of C channels.
        windows: (16, n), the windows of 4x4, each of which holds four of 3x3.

    Returns:
        (C, 1, 3, 3) and (C,).
    """
    with torch.autocast(windows.device.type, enabled=False):  # squares of bfloat16 would carry no variance
        if norm.training:
            of_window, covariances = _moments(windows)
            kernels = weight.flatten(1)
            mean, variance = kernels @ of_window + bias, ((kernels @ covariances) * kernels).sum(1)
            _move_running(norm, mean.detach(), variance.detach(), 4 * windows.shape[1])
        else:
            assert norm.running_mean is not None and norm.running_var is not None  # as by default
            mean, variance = norm.running_mean, norm.running_var
        scale = norm.weight * (variance + norm.eps).rsqrt()
        return weight * scale[:, None, None, None], (bias - mean) * scale + norm.bias


def _moments(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Means (9,) and covariances (9, 9) of the 3x3 windows in windows of 4x4, (16, n)."""
    mean = windows.mean(1)
    centred = windows - mean[:, None]
    products = (centred @ centred.T / windows.shape[1] + torch.outer(mean, mean)).view(4, 4, 4, 4)
    corners = [(slice(i, i + 3), slice(j, j + 3)) for i in (0, 1) for j in (0, 1)]
    means = functools.reduce(torch.add, [mean.view(4, 4)[at] for at in corners]).flatten() / 4
    squares = functools.reduce(torch.add, [products[at + at] for at in corners]).reshape(9, 9) / 4
    return means, squares - torch.outer(means, means)


def _move_running(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, values: int) -> None:
    """Moves running mean and variance by one batch, as BatchNorm does: the variance with n - 1."""
    # as by default, which the networks here leave
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (values / (values - 1)), norm.momentum)
