"""Random crops, flips and colour jitter of a whole batch at once, drawn from each image's own numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import is_integer, is_number

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision's rgb_to_grayscale
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


class BatchAugmentation:
    """Horizontal flip, then colour jitter, then a random crop from the zero-padded image.

    What happens to an image follows from (seed, epoch, index of the image) alone, so it does not depend on its batch,
    on the number of processes, or on whether the run was resumed.

    Args:
        flip: probability of a horizontal flip.
        jitter: largest relative changes of brightness, contrast and saturation, each in 0 ... 1: the factor is uniform
            in [1 - j, 1 + j]; the three come in random order, as torchvision's ``ColorJitter``. None for no jitter.
        padding: pixels of zeros on each side of the image before the crop.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, flip: float = 0.0, jitter: Sequence[float] | None = None, padding: int = 0) -> None:
        if not is_number(flip, 0) or flip > 1:
            raise ValueError(f'flip={flip!r}: expected a probability from 0 to 1')
        if jitter is not None and (len(jitter) != 3 or not all(0 <= value <= 1 for value in jitter)):
            raise ValueError(f'jitter={jitter!r}: expected three numbers from 0 to 1')
        if not is_integer(padding, 0):
            raise ValueError(f'padding={padding!r}: expected an integer >= 0')
        self.flip, self.jitter, self.padding = float(flip), None if jitter is None else tuple(jitter), padding

    def draw(self, num_images: int, seed: int, epoch: int) -> Tensor:
        """(N, 7) uniform numbers of an epoch: what :meth:`__call__` needs for each image."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        return torch.rand(num_images, 7, generator=generator)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Augments a batch.

        Args:
            images: (N, C, H, W) bytes.
            numbers: (N, 7) in [0, 1), of these images.

        Returns:
            (N, C, H, W) bytes; with jitter float32 in 0 ... 1.
        """
        if self.jitter is not None:
            images = self._jittered(images.float() / 255, numbers[:, :4])
        flipped = numbers[:, 4] < self.flip
        offsets = (numbers[:, 5:] * (2 * self.padding + 1)).long()
        return crop_and_flip(images, offsets, flipped, self.padding)

    def _jittered(self, images: Tensor, numbers: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise ValueError(f'colour jitter is for images of 1 or 3 channels, these have {images.shape[1]}')
        largest = _constant(self.jitter, images.device)
        factors = 1 + (2 * numbers[:, :3] - 1) * largest
        order = _constant(_ORDERS, images.device)[(numbers[:, 3] * math.factorial(3)).long()]
        for turn in range(3):
            kind = order[:, turn]
            factor = factors.gather(1, kind[:, None]).view(-1, 1, 1, 1)
            gray = grayscale(images)
            # blended with black, with the image's mean gray, or with its own gray picture
            mean = gray.mean((1, 2, 3), keepdim=True)
            other = torch.where((kind == 1).view(-1, 1, 1, 1), mean, gray) * (kind > 0).view(-1, 1, 1, 1)
            images = (factor * images + (1 - factor) * other).clamp(0, 1)
        return images


@functools.cache
def _constant(values: tuple, device: torch.device) -> Tensor:
    """The same tensor for every batch; one made on the device is a copy that the host waits for."""
    return torch.tensor(values).to(device, non_blocking=True)


def grayscale(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W) brightness; an image of one channel is its own."""
    if images.shape[1] == 1:
        return images
    return (images * _constant(LUMA, images.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def crop_and_flip(images: Tensor, offsets: Tensor, flipped: Tensor, padding: int) -> Tensor:
    """Mirrors the marked images, then takes each image's window out of its zero-padded picture.

    Args:
        images: (N, C, H, W).
        offsets: (N, 2) top and left of the window in the padded picture, 0 to 2 padding.
        flipped: (N,) images to mirror.
        padding: pixels of zeros on each side.

    Returns:
        (N, C, H, W).
    """
    number, _, height, width = images.shape
    rows = offsets[:, :1] + torch.arange(height, device=images.device) - padding
    columns = offsets[:, 1:] + torch.arange(width, device=images.device) - padding
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    which = torch.arange(number, device=images.device)[:, None, None]
    picked = images[which, :, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return (picked * inside[..., None]).permute(0, 3, 1, 2).contiguous()
