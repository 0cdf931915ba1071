"""Common corruptions: those of the package, repeatable, on images with blue first, after the image is loaded."""

from __future__ import annotations

import numpy as np
import pytest

from moe_det.attacks.corruptions import CorruptImage, corrupted_image, with_corruption
from moe_det.attacks.plan import CORRUPTIONS
from moe_det.errors import DataError, MoEConfigError

imagecorruptions = pytest.importorskip('imagecorruptions', reason='pip install imagecorruptions-imaug')
SMALL = ('motion_blur', 'snow', 'fog', 'impulse_noise', 'jpeg_compression')


def image() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    pixels[..., 2] //= 4  # little red, so that a wrong order of colours is seen
    return pixels


def test_the_names_are_those_of_the_benchmark():
    assert imagecorruptions.get_corruption_names('common') == list(CORRUPTIONS)


@pytest.mark.parametrize('name', SMALL)
def test_draws_repeat_and_leave_the_global_generator_alone(name):
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    first, second = (corrupted_image(image(), name, 3, 7) for _ in range(2))
    assert (first == second).all() and (np.random.get_state()[1] == before).all()
    assert (first != image()).any() and first.shape == (40, 48, 3) and first.dtype == np.uint8
    if name not in ('jpeg_compression',):
        assert (corrupted_image(image(), name, 3, 8) != first).any()


def test_the_package_sees_red_first():
    np.random.seed(7)
    expected = imagecorruptions.corrupt(image()[..., ::-1].copy(), 2, 'snow')[..., ::-1]
    assert (corrupted_image(image(), 'snow', 2, 7) == expected).all()


def test_a_higher_severity_changes_more():
    changes = [
        np.abs(corrupted_image(image(), 'gaussian_noise', s, 0).astype(int) - image()).mean() for s in range(1, 6)
    ]
    assert changes == sorted(changes) and changes[4] > 2 * changes[0]


def test_floating_point_images_stay_so():
    found = corrupted_image(image().astype(np.float32), 'contrast', 1, 0)
    assert found.dtype == np.float32 and (found == corrupted_image(image(), 'contrast', 1, 0)).all()


def test_the_image_is_corrupted_before_it_is_resized():
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'Resize', 'scale': (64, 64)}]
    made = with_corruption(pipeline, 'fog', 2, 5)
    assert [step['type'] for step in made] == ['LoadImageFromFile', CorruptImage, 'Resize'] and len(pipeline) == 2
    with pytest.raises(MoEConfigError, match='no step loads an image'):
        with_corruption(pipeline[1:], 'fog', 2)


def test_what_is_drawn_depends_on_the_image_and_the_seed_alone():
    def run(ident: int, seed: int = 0) -> np.ndarray:
        return CorruptImage('gaussian_noise', 1, seed).transform({'img': image(), 'img_id': ident})['img']

    assert (run(1) == run(1)).all() and (run(1) != run(2)).any() and (run(1) != run(1, 1)).any()


def test_mistakes_are_one_message():
    with pytest.raises(MoEConfigError, match="unknown corruption 'mist'"):
        CorruptImage('mist', 1)
    with pytest.raises(MoEConfigError, match='severity 6 of fog: expected 1 to 5'):
        CorruptImage('fog', 6)
    with pytest.raises(DataError, match='a.jpg: corruptions need images of at least 32 x 32 pixels'):
        CorruptImage('fog', 1).transform({'img': image()[:20], 'img_path': 'a.jpg'})
