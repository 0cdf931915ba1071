"""Common corruptions of images: the benchmark of arXiv 1807.01697, for detectors of arXiv 1907.07484.

The corruptions are those of the package imagecorruptions-imaug (Apache-2.0), the maintained continuation of the
benchmark's own under the same import name. mmdet's own transform for them is not in all of its distributions, hands
over images with blue first and does not repeat its draws.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from ..errors import DataError, MoEConfigError, unknown_name
from .plan import CORRUPTIONS, SEVERITIES

PACKAGE = 'imagecorruptions-imaug'
_SMALLEST = 32  # pixels of a side
_TAKES_SEED = ('glass_blur', 'impulse_noise')  # the others draw from numpy's global generator


def check_corruptions() -> None:
    """Raises MoEConfigError where the package that makes corruptions is not installed."""
    try:
        import imagecorruptions  # noqa: F401
    except ImportError as error:
        raise MoEConfigError(
            f'corruptions are made by a package that is not installed ({error}): pip install {PACKAGE}, or ask for none'
        ) from error


class CorruptImage(BaseTransform):
    """Corrupts the image that was loaded, before it is resized; what is drawn depends on seed and image alone.

    Args:
        name: one of :data:`~moe_det.attacks.plan.CORRUPTIONS`.
        severity: 1 to 5.
        seed: of what is drawn.

    Raises:
        MoEConfigError: no such corruption or severity, or the package is missing.
    """

    def __init__(self, name: str, severity: int, seed: int = 0) -> None:
        if name not in CORRUPTIONS:
            raise MoEConfigError(unknown_name('corruption', name, CORRUPTIONS))
        if severity not in SEVERITIES:
            raise MoEConfigError(f'severity {severity!r} of {name}: expected 1 to 5')
        check_corruptions()
        self.name, self.severity, self.seed = name, severity, seed

    def transform(self, results: dict) -> dict:
        """Replaces ``results['img']``, (H, W, 3) with blue first.

        Raises:
            DataError: the image is smaller than the corruptions can handle.
        """
        image = results['img']
        which = results.get('img_path', results.get('img_id'))
        if min(image.shape[:2]) < _SMALLEST:
            raise DataError(f'{which}: corruptions need images of at least {_SMALLEST} x {_SMALLEST} pixels')
        key = f'{self.seed}/{self.name}/{self.severity}/{results.get("img_id", which)}'
        results['img'] = corrupted_image(image, self.name, self.severity, zlib.crc32(key.encode()))
        return results


def corrupted_image(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """An image (H, W, 3) with blue first, of bytes or of numbers in 0 ... 255, corrupted."""
    from imagecorruptions import corrupt

    options = {'seed': seed} if name in _TAKES_SEED else {}
    red_first = np.ascontiguousarray(image[..., ::-1]).clip(0, 255).round().astype(np.uint8)
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        found = corrupt(red_first, severity=severity, corruption_name=name, **options)
    finally:
        np.random.set_state(state)
    return np.ascontiguousarray(found[..., ::-1]).astype(image.dtype)


def with_corruption(pipeline: Sequence[dict], name: str, severity: int, seed: int = 0) -> list[dict]:
    """A pipeline that corrupts each image after it is loaded.

    Raises:
        MoEConfigError: no step of it loads an image.
    """
    steps = copy.deepcopy(list(pipeline))
    loads = [number for number, step in enumerate(steps) if str(step.get('type')).startswith('LoadImage')]
    if not loads:
        raise MoEConfigError('test_dataloader.dataset.pipeline: no step loads an image (LoadImageFromFile)')
    step = {'type': CorruptImage, 'name': name, 'severity': severity, 'seed': seed}
    steps.insert(loads[0] + 1, step)
    return steps
