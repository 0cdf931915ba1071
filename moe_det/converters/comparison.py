"""Compares what two networks compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn

DETECTOR_SIDE = 128  # pixels: all levels of a pyramid, the last one of a single pixel
CLASSIFIER_SIDE = 32


def usual_side(model: Mapping) -> int:
    """Side of a small square image for the ``model`` of a config."""
    if any(model.get(key) is not None for key in ('bbox_head', 'roi_head', 'detectors')):
        return DETECTOR_SIDE
    return (model.get('expert') or {}).get('image_size', CLASSIFIER_SIDE)


def random_image(side: int, seed: int = 0) -> Tensor:
    """(1, 3, side, side) noise as a normalised image, the same for the same seed."""
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def network_outputs(model: nn.Module, image: Tensor) -> list[Tensor] | None:
    """All tensors that a model's plain forward returns in evaluation; None where it has none.

    Args:
        model: on the CPU.
        image: (N, 3, H, W), normalised.
    """
    size = tuple(image.shape[-2:])
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    samples = [DetDataSample(metainfo=dict(**shapes, scale_factor=(1.0, 1.0))) for _ in image]
    try:
        return list(tensors_in(model.eval()(image, samples, mode='tensor')))
    except (NotImplementedError, TypeError):
        return None


def tensors_in(outputs: object) -> Iterator[Tensor]:
    """The tensors in nested lists and tuples, in order."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (list, tuple)):
        for item in outputs:
            yield from tensors_in(item)


def largest_difference(ours: list[Tensor] | None, theirs: list[Tensor] | None) -> float | None:
    """The largest |a - b| / max(1, |b|) over all values; None where outputs are missing or differ in shape."""
    if not ours or not theirs or [x.shape for x in ours] != [x.shape for x in theirs]:
        return None
    return max(((a - b).abs() / b.abs().clamp_min(1)).max().item() for a, b in zip(ours, theirs, strict=True))
