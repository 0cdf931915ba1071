"""The deformable convolutions of ``mmcv._ext``, which TOOD, VFNet and RepPoints need, written on torchvision.

Names, arguments and the habit of writing into given tensors are those of mmcv's compiled operators; see
:mod:`.kernels`. A gradient repeats the forward.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor

from .kernels import at_least_float32


def _deformed(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Deformable convolution; the groups follow from the shapes."""
    return torchvision.ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


def _deformed_gradients(grad_output: Tensor, *given: Tensor | None, **shape: tuple[int, int]) -> list[Any]:
    """Gradients of :func:`_deformed` for its five tensors in at least float32; None for an absent one."""
    dtype = at_least_float32(grad_output)
    leaves: list[Any] = [None if x is None else x.detach().to(dtype).requires_grad_() for x in given]
    with torch.enable_grad():
        input, offset, mask, weight, bias = leaves
        output = _deformed(input, offset, mask, weight, bias, **shape)
    present = [x for x in leaves if x is not None]
    gradients = iter(torch.autograd.grad(output, present, grad_output.to(dtype)))
    return [None if x is None else next(gradients) for x in leaves]


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **shape: int
) -> None:
    """Writes a deformable convolution into ``output`` (Dai et al., "Deformable Convolutional Networks").

    Args:
        input: (n, c, h, w).
        weight: (c', c / groups, kh, kw).
        offset: (n, 2 * deform_groups * kh * kw, h', w'), y before x for every tap of the kernel.
        output: (n, c', h', w'), overwritten.
        columns, ones: not used.
        **shape: mmcv's kW, kH, dW, dH, padW, padH, dilationW, dilationH and numbers of groups.
    """
    dtype = at_least_float32(input)
    output.copy_(_deformed(input.to(dtype), offset.to(dtype), None, weight.to(dtype), None, **_of_plain(shape)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **shape: int,
) -> None:
    """Writes the gradients of :func:`deform_conv_forward` for the input and the offsets."""
    of_input, of_offset, *_ = _deformed_gradients(grad_output, input, offset, None, weight, None, **_of_plain(shape))
    grad_input.copy_(of_input)
    grad_offset.copy_(of_offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **shape: int,
) -> None:
    """Adds ``scale`` times the gradient of :func:`deform_conv_forward` for the weight to ``grad_weight``."""
    weight = torch.zeros_like(grad_weight)  # the gradient for a weight does not depend on it
    *_, of_weight, _ = _deformed_gradients(grad_output, input, offset, None, weight, None, **_of_plain(shape))
    grad_weight.add_(of_weight.to(grad_weight), alpha=scale)


def _of_plain(shape: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {
        'stride': (shape['dH'], shape['dW']),
        'padding': (shape['padH'], shape['padW']),
        'dilation': (shape['dilationH'], shape['dilationW']),
    }


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **shape: int,
) -> None:
    """Writes a modulated deformable convolution into ``output`` (Zhu et al., "Deformable ConvNets v2").

    As :func:`deform_conv_forward`, with a mask (n, deform_groups * kh * kw, h', w') that scales every tap, and a bias
    (c',) which counts with ``with_bias`` alone.
    """
    dtype = at_least_float32(input)
    input, offset, mask, weight = (x.to(dtype) for x in (input, offset, mask, weight))
    output.copy_(_deformed(input, offset, mask, weight, bias.to(dtype) if with_bias else None, **_of_modulated(shape)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **shape: int,
) -> None:
    """Writes the gradients of :func:`modulated_deform_conv_forward` for all five tensors."""
    given = (input, offset, mask, weight, bias if with_bias else None)
    found = _deformed_gradients(grad_output, *given, **_of_modulated(shape))
    for target, gradient in zip((grad_input, grad_offset, grad_mask, grad_weight, grad_bias), found, strict=True):
        if gradient is not None:
            target.copy_(gradient)


def _of_modulated(shape: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {
        'stride': (shape['stride_h'], shape['stride_w']),
        'padding': (shape['pad_h'], shape['pad_w']),
        'dilation': (shape['dilation_h'], shape['dilation_w']),
    }
