"""The operators of ``mmcv._ext`` that stock mmdet's RetinaNet and Faster R-CNN need, written on torchvision.

Names, arguments and the habit of writing into a given output tensor are those of mmcv's compiled operators, because
``mmcv/ops/*.py`` calls them. Half precision is computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from ..errors import StackError

# elements of one slice in the focal loss: bounds the temporaries (64 MiB each in float32) for any number of anchors
_SLICE_ELEMENTS = 2**24


def at_least_float32(*tensors: Tensor) -> torch.dtype:
    """Returns float64 when a tensor has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression: a box goes when its IoU with a kept, better one exceeds the threshold.

    Args:
        boxes: (n, 4) corners x1, y1, x2, y2 in pixels.
        scores: (n,).
        iou_threshold: a box is dropped when its IoU is greater.
        offset: 0, or 1 for corners that are pixel indices: widths are then x2 - x1 + 1.

    Returns:
        (kept,) int64 indices in descending order of score; of equal scores the lower index first (on the CPU).
    """
    dtype = at_least_float32(boxes, scores)
    boxes = boxes.to(dtype)
    if offset:  # moving the far corners by one gives exactly mmcv's widths, areas and intersections
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # rounded as mmcv does, so that an IoU equal to the threshold (3/10 against 0.3) does not count as greater
    threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    return torchvision.ops.nms(boxes, scores.to(dtype), threshold)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Writes the sigmoid focal loss of every class into ``output``: -a_t (1 - p_t)^gamma log p_t.

    Lin et al., "Focal Loss for Dense Object Detection", equation 5; p_t = p and a_t = alpha for the target class,
    1 - p and 1 - alpha for all others. Log-sigmoids keep it exact where mmcv's kernel clamps log p at -87.

    Args:
        input: (n, c) logits.
        target: (n,) int64 class indices; ``c`` (or any other index outside 0..c-1) means background.
        weight: (c,) factors of the rows whose target is that class, or empty for none. Background rows keep the factor
            1; mmcv's kernel reads beyond the end of the tensor there.
        output: (n, c), overwritten.
        gamma: focusing exponent.
        alpha: weight of the target class.
    """
    for rows in _row_slices(input):
        sign, scale = _signs_and_scales(input[rows], target[rows], weight, alpha)
        z = input[rows].to(scale.dtype) * sign
        output[rows] = -scale * torch.sigmoid(-z).pow_(gamma) * F.logsigmoid(z)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Writes the derivative of :func:`sigmoid_focal_loss_forward` with respect to the logits into ``grad_input``.

    With z = x for the target class, z = -x otherwise and p_t = sigmoid(z):
    dL/dz = -a_t (1 - p_t)^gamma (1 - p_t - gamma p_t log p_t). Shapes as in the forward function.
    """
    for rows in _row_slices(input):
        sign, scale = _signs_and_scales(input[rows], target[rows], weight, alpha)
        z = input[rows].to(scale.dtype) * sign
        p_not = torch.sigmoid(-z)  # 1 - p_t without cancellation
        slope = p_not - gamma * torch.sigmoid(z) * F.logsigmoid(z)
        grad_input[rows] = -sign * scale * p_not.pow(gamma) * slope


def _row_slices(input: Tensor) -> list[slice]:
    """Cuts the rows of (n, c) logits into slices of at most ``_SLICE_ELEMENTS`` elements (at least one row each)."""
    step = max(1, _SLICE_ELEMENTS // max(1, input.size(1)))
    return [slice(start, start + step) for start in range(0, input.size(0), step)]


def _signs_and_scales(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Returns (n, c) signs (+1 for the target class, -1 otherwise) and factors a_t times the row's class weight."""
    num_classes = input.size(1)
    dtype = at_least_float32(input)
    positive = target[:, None] == torch.arange(num_classes, device=target.device)
    of_positive, of_negative = (torch.full((), value, dtype=dtype, device=input.device) for value in (alpha, 1 - alpha))
    scale = torch.where(positive, of_positive, of_negative)
    if weight.numel() > 0:
        foreground = (target >= 0) & (target < num_classes)
        of_row = weight.to(dtype)[target.clamp(0, num_classes - 1)]
        scale = scale * torch.where(foreground, of_row, torch.ones_like(of_row))[:, None]
    return positive.to(dtype) * 2 - 1, scale


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes RoIAlign with average pooling into ``output`` (He et al., "Mask R-CNN", section 3).

    Args:
        input: (n, c, h, w) features.
        rois: (r, 5) image index, x1, y1, x2, y2 in input pixels.
        output: (r, c, aligned_height, aligned_width), overwritten.
        argmax_y, argmax_x: used by max pooling only.
        aligned_height, aligned_width: bins per region.
        spatial_scale: feature pixels per input pixel.
        sampling_ratio: samples per bin and axis; 0 takes as many as the bin spans feature pixels.
        pool_mode: 0 for max, 1 for average.
        aligned: shift by half a pixel, so that a pixel's value sits in its middle.

    Raises:
        StackError: max pooling is requested, which torchvision does not have.
    """
    _refuse_max_pooling(pool_mode)
    dtype = at_least_float32(input, rois)
    size = (aligned_height, aligned_width)
    pooled = torchvision.ops.roi_align(
        input.to(dtype), rois.to(dtype), size, spatial_scale, sampling_ratio, bool(aligned)
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes the gradient of :func:`roi_align_forward` with respect to the features into ``grad_input`` (n, c, h, w).

    ``grad_output`` is (r, c, aligned_height, aligned_width); the other arguments and errors are the forward's.
    """
    _refuse_max_pooling(pool_mode)
    dtype = at_least_float32(grad_output, rois)
    # torchvision's registered backward: going through autograd would repeat the forward
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        bool(aligned),
    )
    grad_input.copy_(grad)


def _refuse_max_pooling(pool_mode: int) -> None:
    if pool_mode != 1:
        raise StackError(
            "RoIAlign with pool_mode='max' needs mmcv's compiled operators; torchvision has pool_mode='avg' only."
        )
