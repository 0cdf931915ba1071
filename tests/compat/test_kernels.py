"""The operators on torchvision against naive references, called the way mmdet calls them: through mmcv.ops."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import batched_nms, nms, roi_align, sigmoid_focal_loss

from moe_det.compat import kernels
from moe_det.compat.ops import ops_source
from moe_det.errors import StackError

pytestmark = pytest.mark.skipif(ops_source() != 'torchvision', reason="mmcv's own compiled operators are in use")


# --- NMS ---


def naive_nms(boxes: list[list[int]], scores: list[float], threshold: Fraction, offset: int) -> list[int]:
    """Greedy NMS in exact arithmetic; of equal scores the lower index comes first."""

    def area(x1: int, y1: int, x2: int, y2: int) -> int:
        return max(0, x2 - x1 + offset) * max(0, y2 - y1 + offset)

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        for j in kept:
            a, b = boxes[i], boxes[j]
            common = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
            union = area(*a) + area(*b) - common
            if union and Fraction(common, union) > threshold:
                break
        else:
            kept.append(i)
    return kept


corner, extent = st.integers(-20, 20), st.integers(0, 12)
box = st.tuples(corner, corner, extent, extent).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(box, st.sampled_from([0.1, 0.5, 0.6, 0.9])), min_size=1, max_size=25),
    st.sampled_from([Fraction(3, 10), Fraction(1, 2), Fraction(7, 10)]),
    st.sampled_from([0, 1]),
)
def test_nms_equals_exact_reference(items, threshold, offset):
    boxes, scores = [item[0] for item in items], [item[1] for item in items]
    dets, kept = nms(torch.tensor(boxes).float(), torch.tensor(scores), float(threshold), offset=offset)
    assert kept.tolist() == naive_nms(boxes, scores, threshold, offset)
    assert torch.equal(dets[:, :4], torch.tensor(boxes).float()[kept])


def test_nms_offset_decides():
    # side by side: 0 common pixels; as pixel indices they share a column: 1 * 5 of 25 + 25 - 5, IoU 1/9 = 0.111
    boxes, scores = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4]]), torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.11)[1].tolist() == [0, 1]
    assert nms(boxes, scores, 0.11, offset=1)[1].tolist() == [0]
    assert nms(boxes, scores, 0.12, offset=1)[1].tolist() == [0, 1]


def test_nms_keeps_a_box_whose_iou_equals_the_threshold():
    # 6 common of 20 pixels; 3/10 rounded to float32 is greater than 0.3 in double precision
    boxes = torch.tensor([[0.0, 0, 13, 1], [7, 0, 20, 1]])
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.3)[1].tolist() == [0, 1]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_accepts_other_precisions(dtype):
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]], dtype=dtype)
    dets, kept = nms(boxes, torch.tensor([0.5, 0.75, 0.25], dtype=dtype), 0.5)
    assert kept.tolist() == [1, 2] and dets.dtype == dtype  # IoU of the first two: 90 / 110


def test_nms_without_boxes():
    dets, kept = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64


def test_batched_nms_keeps_classes_apart():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    dets, kept = batched_nms(boxes, torch.tensor([0.3, 0.2, 0.4]), torch.tensor([0, 1, 0]), dict(iou_threshold=0.5))
    assert kept.tolist() == [2, 1]


# --- sigmoid focal loss ---


def naive_focal_loss(x: torch.Tensor, target: list[int], gamma: float, alpha: float, weight=None) -> torch.Tensor:
    """Equation 5 of the paper, element by element."""
    rows = []
    for n, t in enumerate(target):
        row_weight = 1 if weight is None or not 0 <= t < x.size(1) else weight[t]
        for c in range(x.size(1)):
            p = 1 / (1 + torch.exp(-x[n, c]))
            loss = -alpha * (1 - p) ** gamma * p.log() if t == c else -(1 - alpha) * p**gamma * (1 - p).log()
            rows.append(row_weight * loss)
    return torch.stack(rows).reshape(x.shape)


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.0, 0.3), (1.5, 0.9)])
@pytest.mark.parametrize('weighted', [False, True])
def test_focal_loss_value_and_gradient(gamma, alpha, weighted, monkeypatch):
    monkeypatch.setattr(kernels, '_SLICE_ELEMENTS', 7)  # several slices, the last one shorter
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=generator, dtype=torch.float64) * 4
    target = [0, 1, 2, 3, 3, 0, 2, 1]  # 3: background
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64) if weighted else None
    upstream = torch.rand(8, 3, generator=generator, dtype=torch.float64)

    ours = x.clone().requires_grad_()
    loss = sigmoid_focal_loss(ours, torch.tensor(target), gamma, alpha, weight, 'none')
    loss.backward(upstream)
    reference = x.clone().requires_grad_()
    expected = naive_focal_loss(reference, target, gamma, alpha, weight)
    expected.backward(upstream)

    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-10, atol=1e-14)


def test_focal_loss_is_finite_and_linear_far_out():
    x = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    loss = sigmoid_focal_loss(x, torch.tensor([0, 0]), 2.0, 0.25, None, 'none')
    loss.sum().backward()
    # certain and wrong: the loss grows with the logit, slope alpha or 1 - alpha; certain and right: nothing
    torch.testing.assert_close(loss, torch.tensor([[50.0, 150.0], [0.0, 0.0]]))
    torch.testing.assert_close(x.grad, torch.tensor([[-0.25, 0.75], [0.0, 0.0]]))


def test_focal_loss_in_half_precision_is_float32_rounded_once():
    x = torch.linspace(-6, 6, 12).reshape(4, 3).half()
    target = torch.tensor([0, 1, 3, 2])
    half = sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'none')
    assert torch.equal(half, sigmoid_focal_loss(x.float(), target, 2.0, 0.25, None, 'none').half())


def test_focal_loss_without_rows():
    x = torch.zeros(0, 3, requires_grad=True)
    sigmoid_focal_loss(x, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, 'sum').backward()
    assert x.grad.shape == (0, 3)


# --- RoIAlign ---


def bilinear(plane: torch.Tensor, y: float, x: float) -> float:
    """Value of an (h, w) plane between pixels; 0 more than one pixel outside, the edge's value up to there."""
    h, w = plane.shape
    if y < -1 or y > h or x < -1 or x > w:
        return 0.0
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    fy, fx = y - top, x - left
    upper = plane[top, left] * (1 - fx) + plane[top, right] * fx
    lower = plane[bottom, left] * (1 - fx) + plane[bottom, right] * fx
    return float(upper * (1 - fy) + lower * fy)


def naive_roi_align(features, rois, size, scale, ratio, aligned):
    """RoIAlign by its definition: the mean of a regular grid of samples in every bin."""
    output = torch.zeros(len(rois), features.size(1), *size, dtype=features.dtype)
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0) for value in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        bin_h, bin_w = height / size[0], width / size[1]
        ny, nx = (ratio, ratio) if ratio else (math.ceil(bin_h), math.ceil(bin_w))
        for c in range(features.size(1)):
            for i in range(size[0]):
                for j in range(size[1]):
                    ys = [y1 + (i + (u + 0.5) / ny) * bin_h for u in range(ny)]
                    xs = [x1 + (j + (v + 0.5) / nx) * bin_w for v in range(nx)]
                    samples = [bilinear(features[int(image), c], y, x) for y in ys for x in xs]
                    output[r, c, i, j] = sum(samples) / max(1, len(samples))
    return output


FEATURES = torch.randn(2, 2, 7, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
# inside, across the border, the other image, thinner than a pixel, of no size
ROIS = torch.tensor(
    [[0, 4, 6, 20, 18], [0, -9, -9, 12, 11], [1, 22, 14, 40, 31], [1, 8, 8, 8.6, 20], [1, 10, 10, 10, 10]],
    dtype=torch.float64,
)


@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_value(aligned, ratio):
    pooled = roi_align(FEATURES, ROIS, (2, 3), 0.25, ratio, 'avg', aligned)
    torch.testing.assert_close(pooled, naive_roi_align(FEATURES, ROIS, (2, 3), 0.25, ratio, aligned))


@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align_gradient(aligned):
    features = FEATURES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, ROIS[:4], (2, 3), 0.25, 2, 'avg', aligned), features)


def test_roi_align_in_half_precision_and_without_regions():
    pooled = roi_align(FEATURES.half(), ROIS.half(), 2, 0.25, 0, 'avg', True)
    assert pooled.dtype == torch.float16
    expected = roi_align(FEATURES.half().float(), ROIS.half().float(), 2, 0.25, 0, 'avg', True)
    assert torch.equal(pooled, expected.half())
    assert roi_align(FEATURES, ROIS[:0], 2, 0.25, 0, 'avg', True).shape == (0, 2, 2, 2)


def test_roi_align_refuses_max_pooling():
    with pytest.raises(StackError, match="pool_mode='max'"):
        roi_align(FEATURES, ROIS, 2, 0.25, 0, 'max', True)
