"""Changes of images that should not change what is decided about them, or whose effect on it is to be known.

Shape letters: N images, C channels, H, W; pixels are in 0 ... 255.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import is_number
from ..errors import MoEConfigError, unknown_name

Change = Callable[[Tensor, float, torch.Generator], Tensor]


def _flip(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return pixels.flip(3)


def _noise(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(pixels.shape, generator=generator)  # on the CPU: the same numbers on every device
    return (pixels + strength * drawn.to(pixels)).clamp(0, 255)


def _scale(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    size = [max(1, round(length * strength)) for length in pixels.shape[2:]]
    return F.interpolate(pixels, size, mode='bilinear', align_corners=False, antialias=strength < 1)


def _brightness(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return (pixels + strength).clamp(0, 255)


def _jpeg(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    import cv2

    changed = []
    for image in pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy():
        _, code = cv2.imencode('.jpg', np.ascontiguousarray(image), [cv2.IMWRITE_JPEG_QUALITY, int(strength)])
        read = cv2.imdecode(code, cv2.IMREAD_UNCHANGED)
        assert read is not None  # what was just written
        changed.append(torch.from_numpy(read.reshape(image.shape)))
    return torch.stack(changed).permute(0, 3, 1, 2).to(pixels)


# name -> function, least strength, largest strength; None for a change without strength
CHANGES: dict[str, tuple[Change, tuple[float, float] | None, str]] = {
    'flip': (_flip, None, 'horizontal'),
    'noise': (_noise, (0.0, 255.0), 'standard deviation of Gaussian noise in pixel values'),
    'scale': (_scale, (0.1, 10.0), 'factor of height and width'),
    'brightness': (_brightness, (-255.0, 255.0), 'added to the pixel values'),
    'jpeg': (_jpeg, (1.0, 100.0), 'quality'),
}


@dataclass(frozen=True)
class ImageChange:
    """One change of a batch of images.

    Attributes:
        name: of ``CHANGES``.
        strength: see there; 1 for a change without.
    """

    name: str
    strength: float = 1.0

    @property
    def mirrors(self) -> bool:
        """Whether left becomes right."""
        return self.name == 'flip'

    def __str__(self) -> str:
        return self.name if CHANGES[self.name][1] is None else f'{self.name}:{self.strength:g}'

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W')."""
        return CHANGES[self.name][0](pixels, self.strength, generator)


def read_changes(texts: Sequence[str], where: str) -> list[ImageChange]:
    """Reads changes such as ``flip``, ``noise:8`` or ``scale:0.75``.

    Args:
        texts: of a config or of the command line.
        where: names them in messages.

    Raises:
        MoEConfigError: none, an unknown change, or a strength that is missing, superfluous or out of range.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        raise MoEConfigError(f"{where}={texts!r}: expected a list such as ['flip', 'noise:8']")
    return [_read_change(text, where) for text in texts]


def _read_change(text: object, where: str) -> ImageChange:
    name, _, strength = str(text).partition(':')
    if name not in CHANGES:
        raise MoEConfigError(f'{where}: {unknown_name("change", name, CHANGES)}')
    _, limits, what = CHANGES[name]
    if limits is None:
        if strength:
            raise MoEConfigError(f'{where}: {text}: {name} takes no strength')
        return ImageChange(name)
    try:
        value = float(strength)
    except ValueError:
        value = float('nan')
    if not is_number(value) or not limits[0] <= value <= limits[1]:
        raise MoEConfigError(f'{where}: {text}: expected {name}:X with {what} X from {limits[0]:g} to {limits[1]:g}')
    return ImageChange(name, value)


class Changer:
    """Changes the inputs of a model, normalised or not, in pixel values.

    Args:
        preprocessor: the model's; its ``mean`` and ``std`` lead back to pixels.
    """

    def __init__(self, preprocessor: Any) -> None:
        self._normalises = isinstance(getattr(preprocessor, 'mean', None), Tensor)
        self._normalises = self._normalises and getattr(preprocessor, '_enable_normalize', True)
        self._preprocessor = preprocessor

    def __call__(self, inputs: Tensor, change: ImageChange, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) inputs of the model -> those of the changed images."""
        inputs = inputs.float()
        if not self._normalises:
            return change(inputs, generator)
        largest = getattr(self._preprocessor, 'largest_value', 255.0)
        mean, std = (getattr(self._preprocessor, key).to(inputs) for key in ('mean', 'std'))
        pixels = (inputs * std + mean) * (255.0 / largest)
        return (change(pixels, generator) / (255.0 / largest) - mean) / std


def changed_samples(samples: Any, before: torch.Size, after: torch.Size) -> Any:
    """The data samples of changed images: copies that know the images' new size, where the samples know sizes."""
    if before == after or not isinstance(samples, (list, tuple)):
        return samples
    copies = []
    for sample in samples:
        sample = sample.clone()
        height, width = (after[2 + i] / before[2 + i] for i in range(2))
        known = {key: sample.get(key) for key in ('img_shape', 'pad_shape', 'batch_input_shape')}
        sizes = {
            key: (round(size[0] * height), round(size[1] * width)) for key, size in known.items() if size is not None
        }
        sample.set_metainfo(sizes)
        copies.append(sample)
    return copies
