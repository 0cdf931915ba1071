"""Attacks on functions of a few pixels, whose results are worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_det.attacks.perturbations import Ball, fgsm, pgd, random_signs, shifted, universal
from moe_det.errors import NonFiniteError

CLEAN = torch.tensor([[100.0, 254.0, 1.0, 50.0], [3.0, 100.0, 100.0, 7.0]]).view(2, 1, 1, 4)
WEIGHTS = torch.tensor([[2.0, 1.0, -3.0, 0.0], [-1.0, -5.0, 0.5, 0.0]]).view(2, 1, 1, 4)
# every pixel as far as it may go: eps 4, images end at 0 and 255, a pixel of weight 0 is not moved by the gradient
CORNER = torch.tensor([[104.0, 255.0, 0.0, 50.0], [0.0, 96.0, 104.0, 7.0]]).view(2, 1, 1, 4)
BALL = Ball(4.0)
MOVED = [0, 1, 2]  # pixels with a weight


def linear(images: Tensor) -> Tensor:
    return (images * WEIGHTS).sum(dim=(1, 2, 3))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_one_step_on_a_linear_function_ends_in_the_corner():
    torch.testing.assert_close(fgsm(CLEAN, linear, BALL), CORNER)


@pytest.mark.parametrize('restarts', [1, 3])
def test_many_small_steps_end_in_the_same_corner(restarts):
    # ten steps of one are more than the eight from one end of the ball to the other
    found = pgd(CLEAN, linear, BALL, 10, 1.0, restarts, generator())
    torch.testing.assert_close(found[..., MOVED], CORNER[..., MOVED])
    assert ((found - CLEAN).abs() <= 4).all() and found.min() >= 0 and found.max() <= 255


def test_the_result_is_the_image_after_the_last_step():
    seen = []

    def watched(images: Tensor) -> Tensor:
        seen.append(images.detach().clone())
        return linear(images)

    found = pgd(CLEAN, watched, BALL, 3, 0.5, generator=generator())
    assert len(seen) == 3
    torch.testing.assert_close(found, BALL.nearest(seen[-1] + 0.5 * WEIGHTS.sign(), CLEAN))
    assert linear(found).gt(linear(seen[-1])).all()
    # a single step as long as the ball is wide reaches the corner from any start; the image before it does not
    once = pgd(CLEAN, watched, BALL, 1, 8.0, generator=generator())
    torch.testing.assert_close(once[..., MOVED], CORNER[..., MOVED])
    assert not torch.equal(seen[-1][..., MOVED], CORNER[..., MOVED])


def test_each_image_keeps_its_best_start():
    clean = torch.full((3, 1, 1, 1), 100.0)

    def two_slopes(images: Tensor) -> Tensor:
        """Rises to both sides, and twice as steep to the left: 4 at 104, 8 at 96."""
        distance = (images - 100).flatten()
        return torch.maximum(distance, -2 * distance)

    starts = [pgd(clean, two_slopes, BALL, 10, 1.0, 1, torch.Generator().manual_seed(seed)) for seed in range(4)]
    assert {value for found in starts for value in found.flatten().tolist()} == {96.0, 104.0}
    best = pgd(clean, two_slopes, BALL, 10, 1.0, 12, generator())
    assert best.flatten().tolist() == [96.0, 96.0, 96.0]


def test_a_universal_perturbation_is_what_the_images_agree_on():
    # of two images: the first pixel rises for both, the second falls for both, about the third they do not agree
    weights = [torch.tensor([1.0, -2.0, 1.0]).view(1, 1, 1, 3), torch.tensor([3.0, -1.0, -1.0]).view(1, 1, 1, 3)]
    images = [torch.full((1, 1, 1, 3), 100.0), torch.full((1, 1, 1, 3), 254.0)]

    def scenes() -> list:
        return [(x, lambda y, w=w: (y * w).sum(dim=(1, 2, 3))) for x, w in zip(images, weights, strict=True)]

    shift = None
    for _ in range(4):
        shift = universal(scenes(), BALL, 1.0, shift)
    assert shift.flatten().tolist() == [4.0, -4.0, 0.0]
    assert shifted(images[1], shift, BALL).flatten().tolist() == [255.0, 250.0, 254.0]
    first = universal(scenes()[:1], BALL, 1.0)
    assert first.flatten().tolist() == [1.0, -1.0, 1.0]


def test_a_universal_perturbation_grows_to_the_largest_image():
    small, large = torch.full((1, 1, 1, 2), 100.0), torch.full((1, 1, 2, 3), 100.0)
    shift = universal([(small, lambda x: x.sum(dim=(1, 2, 3))), (large, lambda x: -x.sum(dim=(1, 2, 3)))], BALL, 1.0)
    assert shift[0, 0].tolist() == [[0.0, 0.0, -1.0], [-1.0, -1.0, -1.0]]
    assert shifted(small, shift, BALL)[0, 0].tolist() == [[100.0, 100.0]]
    assert shifted(torch.full((1, 1, 1, 4), 9.0), shift, BALL)[0, 0].tolist() == [[9.0, 9.0, 8.0, 9.0]]


def test_random_signs_move_every_pixel_by_eps_in_either_direction():
    clean = torch.full((1, 3, 20, 20), 100.0)
    moved = random_signs(clean, BALL, generator()) - clean
    assert set(moved.flatten().tolist()) == {-4.0, 4.0} and abs(moved.mean()) < 0.5
    assert random_signs(torch.full((1, 3, 9, 9), 254.0), BALL, generator()).unique().tolist() == [250.0, 255.0]


def test_a_value_that_does_not_depend_on_the_image_moves_nothing():
    torch.testing.assert_close(fgsm(CLEAN, lambda x: torch.ones(2), BALL), CLEAN)


def test_a_gradient_that_is_not_finite_is_an_error():
    with pytest.raises(NonFiniteError, match='gradient of the attacked objective'):
        fgsm(torch.zeros(1, 1, 1, 1), lambda x: x.sqrt().sum().reshape(1), BALL)
