"""Whether NanoDet-g's weights are where they belong: the whole detector's average precision on COCO images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from moe_det.analysis.ground_truth import GroundTruth
from moe_det.errors import DataError

from .backbones import BACKBONES
from .folder import Folder
from .networks import BINS, CLASSES, STRIDES, WholeNanoDetG
from .weights import fill, nanodet_tensors

SIZE = 416  # of an image's longer side
SCORE, OVERLAP, MOST = 0.05, 0.6, 100  # detections below are left out, of the same class merged, and kept per image
PUBLISHED = 0.229  # AP of its authors on the whole val2017


def network_input(image: np.ndarray) -> tuple[Tensor, float]:
    """(h, w, 3) BGR bytes -> (1, 3, H, W) with its longer side at SIZE, padded with zeros, and the factor of size."""
    pixels = BACKBONES['nanodet'].pixels
    factor = SIZE / max(image.shape[:2])
    width, height = (round(side * factor) for side in image.shape[1::-1])
    resized = (cv2.resize(image, (width, height)).astype(np.float32) - pixels['mean']) / pixels['std']
    padded = np.zeros((-(-height // 32) * 32, -(-width // 32) * 32, 3), np.float32)
    padded[:height, :width] = resized
    return torch.from_numpy(padded).permute(2, 0, 1)[None], factor


def boxes_of(outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The head's outputs for one image -> scores (n, classes) and boxes (n, 4) x1, y1, x2, y2 in input pixels.

    A side's distance from its cell's centre is the mean of a distribution over 0, 1, ... strides (arXiv 2006.04388).
    """
    scores, boxes = [], []
    for of_level, stride in zip(outputs, STRIDES, strict=True):
        height, width = of_level.shape[-2:]
        cells = of_level[0].permute(1, 2, 0).reshape(height * width, -1)
        sides = cells[:, CLASSES:].reshape(-1, 4, BINS).softmax(-1) @ torch.arange(float(BINS)) * stride
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing='ij')
        centres = torch.stack([x, y], -1).reshape(-1, 2) * stride
        scores.append(cells[:, :CLASSES].sigmoid())
        boxes.append(torch.cat([centres - sides[:, :2], centres + sides[:, 2:]], 1))
    return torch.cat(scores), torch.cat(boxes)


@torch.no_grad()
def detections_of(model: WholeNanoDetG, image: np.ndarray) -> np.ndarray:
    """(n, 7) x, y, width, height in the image's pixels, score, label, level (-1: not known) of one image."""
    network, factor = network_input(image)
    scores, boxes = boxes_of(model(network))
    cells, labels = (scores > SCORE).nonzero(as_tuple=True)
    scores, boxes = scores[cells, labels], boxes[cells]
    kept = batched_nms(boxes, scores, labels, OVERLAP)[:MOST]
    height, width = image.shape[:2]
    corners = np.clip(boxes[kept].numpy() / factor, 0, [width, height] * 2)
    columns = [corners[:, :2], corners[:, 2:] - corners[:, :2], scores[kept, None], labels[kept, None]]
    return np.concatenate([*columns, np.full((len(kept), 1), -1)], axis=1)


def check_port(weights: str, folder: Folder) -> dict[str, object]:
    """Average precisions of the whole detector on a folder's validation images.

    Args:
        weights: NanoDet-g's json.
        folder: with COCO's eighty categories.

    Raises:
        DataError: other categories, or an image that cannot be read.
    """
    if len(folder.classes) != CLASSES:
        raise DataError(
            f"{folder.path}: {len(folder.classes)} categories; the check of the port needs COCO's {CLASSES}"
        )
    model = WholeNanoDetG().eval()
    fill(model, nanodet_tensors(weights), weights)
    images = folder.val_images()
    rows = []
    for position, image in enumerate(images):
        path = Path(folder.path) / 'val2017' / image['file_name']
        pixels = cv2.imread(str(path))
        if pixels is None:
            raise DataError(f'{path}: cannot be read as an image')
        found = detections_of(model, pixels)
        rows.append(np.concatenate([np.full((len(found), 1), position), found], axis=1))
    truth = GroundTruth(folder.val_file, [image['id'] for image in images], folder.category_ids)
    precision = truth.average_precision(np.concatenate(rows))
    return {'data': folder.name, 'images': len(images), 'size': SIZE, 'published_AP': PUBLISHED, **precision}
