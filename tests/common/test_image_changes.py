"""Changes of images: what they do to pixels, through the normalisation of a model and back."""

from __future__ import annotations

import moe_det.registry  # noqa: F401 - first: supplies the operators that mmdet's import needs

# isort: split
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample

from moe_det.classification.preprocessor import ClassificationPreprocessor
from moe_det.common.image_changes import Changer, changed_samples, read_changes
from moe_det.errors import MoEConfigError

PIXELS = (torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8) % 200).float() + 20


def changed(text: str, pixels: torch.Tensor = PIXELS) -> torch.Tensor:
    return read_changes([text], 'changes')[0](pixels, torch.Generator().manual_seed(0))


def test_what_happens_to_pixels():
    assert torch.equal(changed('flip'), PIXELS.flip(3))
    assert torch.equal(changed('brightness:50'), (PIXELS + 50).clamp_max(255))
    assert torch.equal(changed('noise:0'), PIXELS)
    flat = torch.full((1, 3, 64, 64), 100.0)
    assert changed('noise:8', flat).std().item() == pytest.approx(8, rel=0.05)
    assert changed('noise:100', flat).min() == 0
    assert changed('scale:0.5').shape == (2, 3, 4, 4) and changed('scale:1.5').shape == (2, 3, 12, 12)
    torch.testing.assert_close(changed('scale:0.5', flat), torch.full((1, 3, 32, 32), 100.0))
    errors = [(changed(f'jpeg:{quality}') - PIXELS).abs().mean() for quality in (5, 50, 100)]
    assert errors[0] > errors[1] > errors[2] > 0
    assert changed('jpeg:90', PIXELS[:, :1]).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ('preprocessor', 'largest'),
    [
        (DetDataPreprocessor(mean=[10.0, 20.0, 30.0], std=[50.0, 60.0, 70.0]), 255),
        (DetDataPreprocessor(), 255),
        (ClassificationPreprocessor(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)), 1),
    ],
)
def test_strengths_are_in_pixels_whatever_the_normalisation(preprocessor, largest):
    mean, std = (getattr(preprocessor, key, default) for key, default in (('mean', 0.0), ('std', 1.0)))

    def normalised(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels * (largest / 255) - mean) / std

    (change,) = read_changes(['brightness:40'], 'changes')
    found = Changer(preprocessor)(normalised(PIXELS), change, torch.Generator())
    torch.testing.assert_close(found, normalised((PIXELS + 40).clamp_max(255)))


def test_samples_know_the_size_of_a_scaled_image():
    sample = DetDataSample(metainfo=dict(img_shape=(60, 40), batch_input_shape=(64, 64), img_id=3))
    (found,) = changed_samples([sample], torch.Size([1, 3, 64, 64]), torch.Size([1, 3, 48, 48]))
    assert (found.img_shape, found.batch_input_shape, found.img_id) == ((45, 30), (48, 48), 3)
    assert sample.img_shape == (60, 40)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ('flip', "changes='flip': expected a list"),
        ([], 'expected a list'),
        (['flop'], "unknown change 'flop'.*Did you mean 'flip'"),
        (['flip:2'], 'flip takes no strength'),
        (['noise'], 'noise: expected noise:X with standard deviation .* from 0 to 255'),
        (['scale:0'], 'scale:0: expected scale:X with factor .* from 0.1 to 10'),
        (['jpeg:x'], 'jpeg:x: expected jpeg:X with quality X from 1 to 100'),
    ],
)
def test_wrong_changes_are_one_message(changes, message):
    with pytest.raises(MoEConfigError, match=message):
        read_changes(changes, 'changes')
