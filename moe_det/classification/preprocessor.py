"""Normalisation of image batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor

from ..errors import MoEConfigError


class ClassificationPreprocessor(BaseDataPreprocessor):
    """Moves a batch to the model's device and normalises its images: (x - mean) / std per channel.

    Bytes are first divided by 255; floating-point images are taken to lie in 0 ... 1 already, as the data set leaves
    them after a colour jitter.

    Args:
        mean: per channel, in 0 ... 1; None for 0.
        std: per channel, above 0; None for 1.

    Raises:
        MoEConfigError: a mean and a std of different length, or a std that is not above 0.
    """

    largest_value = 1.0  # of a pixel before it is normalised

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        mean = (0.0,) * len(std or (1,)) if mean is None else tuple(mean)
        std = (1.0,) * len(mean) if std is None else tuple(std)
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise MoEConfigError(
                f'model.data_preprocessor: mean={mean!r}, std={std!r}: expected as many numbers in both, std above 0'
            )
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Returns the batch with float32 images.

        Raises:
            MoEConfigError: the images have another number of channels than mean and std.
        """
        data = self.cast_data(data)
        inputs = data['inputs']
        channels = len(self.mean)
        if channels > 1 and inputs.shape[-3] != channels:
            raise MoEConfigError(
                f'model.data_preprocessor: mean and std are for {channels} channels, the images have {inputs.shape[-3]}'
            )
        scale = 1.0 if inputs.is_floating_point() else 255.0
        # one multiplication and one addition per pixel, whatever the scale
        factor = 1 / (self.std * scale)
        return {**data, 'inputs': torch.addcmul(-self.mean / self.std, inputs.float(), factor)}
