"""Pixels of the original image, of the input, and back."""

from __future__ import annotations

import moe_det.registry  # noqa: F401 - first: supplies the operators that mmdet's import needs

# isort: split
import numpy as np
import torch
from mmdet.datasets.transforms import RandomCenterCropPad
from mmdet.structures import DetDataSample

from moe_det.common.image_frame import Frame
from moe_det.probing.places import Truth
from moe_det.studies.attacked_images import Scene

NOTHING = Truth(np.zeros(0), np.zeros((0, 4)), np.zeros(0))
BOX = (20, 10, 30, 16)  # x, y, width, height


def centred(height: int, width: int) -> tuple[np.ndarray, dict]:
    """An image of one white box as the test pipeline of CenterNet leaves it, and its metadata."""
    image = np.zeros((height, width, 3), np.float32)
    x, y, w, h = BOX
    image[y : y + h, x : x + w] = 255
    pad = RandomCenterCropPad(
        ratios=None, border=None, mean=[9, 9, 9], std=[1, 1, 1], to_rgb=False,
        test_mode=True, test_pad_mode=['logical_or', 31], test_pad_add_pix=1,
    )  # fmt: skip
    results = pad(dict(img=image))
    return results['img'], dict(ori_shape=(height, width), scale_factor=(1.0, 1.0), border=results['border'])


def test_boxes_lie_where_a_pipeline_that_centres_the_image_draws_them():
    pixels, meta = centred(70, 100)
    assert pixels.shape[:2] == (96, 128)
    truth = Truth(np.array([0]), np.array([BOX], dtype=np.float64), np.array([0]))
    (corners,) = truth.resized(meta).int().tolist()
    ys, xs = np.nonzero(pixels[..., 0] == 255)
    assert corners == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    np.testing.assert_array_equal(Frame.of(meta).to_original(np.array(corners, float)), [20, 10, 50, 26])


def test_an_image_in_the_middle_is_changed_there_alone():
    pixels, meta = centred(70, 100)
    images = torch.as_tensor(pixels).permute(2, 0, 1)[None]
    scene = Scene(0, images, DetDataSample(metainfo=meta), NOTHING)
    changed = scene.only_content(images + 1)[0, 0] != images[0, 0]
    assert changed.sum() == 70 * 100 and not changed[(images[0, 0] == 9)].any()


def test_scales_of_both_axes_are_kept_apart():
    frame = Frame.of(dict(scale_factor=(2.0, 0.5), ori_shape=(40, 30)))
    np.testing.assert_array_equal(frame.to_input(np.array([[10.0, 10.0, 20.0, 20.0]])), [[20, 5, 40, 10]])
    np.testing.assert_array_equal(frame.end, [60, 20])
    assert Frame.of({}).end is None and Frame.of({}).scale.tolist() == [1, 1]
