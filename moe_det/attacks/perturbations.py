"""Perturbations of images inside a ball: one gradient step, several with restarts, one for all images, random signs.

Nothing here knows what a model is. An objective maps images (N, C, H, W) to (N,) values, which the attack raises; the
value of an image must not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import NonFiniteError

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ball:
    """Images that differ from a clean one by at most ``eps`` in every pixel, and that are images.

    Attributes:
        eps: largest change of a pixel, in the unit of the images.
        low: smallest value of a pixel.
        high: largest value of a pixel.
    """

    eps: float
    low: float = 0.0
    high: float = 255.0

    def nearest(self, images: Tensor, clean: Tensor) -> Tensor:
        """The images of the ball around ``clean`` that are nearest to ``images``, pixel by pixel."""
        return torch.minimum(torch.maximum(images, clean - self.eps), clean + self.eps).clamp(self.low, self.high)


def gradient_sign(images: Tensor, objective: Objective) -> Tensor:
    """(N, C, H, W) sign of the gradient of each image's value; 0 where the value does not depend on the image.

    Raises:
        NonFiniteError: the gradient has an infinite or undefined entry.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        values = objective(images)
        if not values.requires_grad:
            return torch.zeros_like(images)
        (gradient,) = torch.autograd.grad(values.sum(), images)
    if not torch.isfinite(gradient).all():
        raise NonFiniteError('the gradient of the attacked objective with respect to the pixels is not finite')
    return gradient.sign()


def fgsm(images: Tensor, objective: Objective, ball: Ball) -> Tensor:
    """One step of size eps along the sign of the gradient (arXiv 1412.6572).

    Args:
        images: (N, C, H, W) clean images.
        objective: what is raised.
        ball: where the result lies.
    """
    return ball.nearest(images + ball.eps * gradient_sign(images, objective), images)


def pgd(
    images: Tensor,
    objective: Objective,
    ball: Ball,
    steps: int,
    step: float,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient ascent from random starts (arXiv 1706.06083).

    The result is the image after the last step. The public code of arXiv 2412.11608 evaluates the one before, which is
    an attack of one step less.

    Args:
        images: (N, C, H, W) clean images.
        objective: what is raised.
        ball: where the result lies.
        steps: of the ascent.
        step: size of each, in the unit of the images.
        restarts: number of starts, drawn uniformly from the ball; each image keeps its result of the largest value.
        generator: of the starts.
    """
    best, most = images, None
    for _ in range(restarts):
        start = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype) * 2 - 1
        found = ball.nearest(images + ball.eps * start, images)
        for _ in range(steps):
            found = ball.nearest(found + step * gradient_sign(found, objective), images)
        if restarts == 1:
            return found
        with torch.no_grad():
            values = objective(found)
        if most is None:
            best, most = found, values
        else:
            best = torch.where((values > most)[:, None, None, None], found, best)
            most = torch.maximum(values, most)
    return best


def random_signs(images: Tensor, ball: Ball, generator: torch.Generator | None = None) -> Tensor:
    """Every pixel moved by +eps or -eps at random: what a change of this size does without any knowledge."""
    coins = torch.randint(0, 2, images.shape, generator=generator, device=images.device)
    return ball.nearest(images + ball.eps * (2.0 * coins - 1), images)


def universal(
    scenes: Iterable[tuple[Tensor, Objective]], ball: Ball, step: float, before: Tensor | None = None
) -> Tensor:
    """One pass that fits a single perturbation to many images, one step along the sign of the gradient for each.

    The signed steps with one perturbation kept inside the ball follow the public code of arXiv 2412.11608, which feeds
    the sign to Adam; a plain step, its size and one step per image are our own choice, and so is that images share
    their upper left corner where their sizes differ.

    Args:
        scenes: images (N, C, H, W) and the objective of each.
        ball: of the perturbation.
        step: size of each, in the unit of the images.
        before: the perturbation of an earlier pass; None starts from 0.

    Returns:
        (1, C, H, W) of the largest height and width.

    Raises:
        ValueError: there are no scenes and no earlier perturbation.
    """
    shift = before
    for images, objective in scenes:
        if shift is None:
            shift = torch.zeros_like(images[:1])
        height, width = (max(old, new) for old, new in zip(shift.shape[-2:], images.shape[-2:], strict=True))
        shift = _extended(shift, height, width)
        towards = gradient_sign(shifted(images, shift, ball), objective).mean(0, keepdim=True).sign()
        grown = shift + step * _extended(towards, height, width)
        shift = grown.clamp(-ball.eps, ball.eps)
    if shift is None:
        raise ValueError('a universal perturbation needs images to be fitted to')
    return shift


def shifted(images: Tensor, shift: Tensor, ball: Ball) -> Tensor:
    """Images (N, C, H, W) with a universal perturbation, of which they take the upper left corner."""
    height, width = images.shape[-2:]
    return ball.nearest(images + _extended(shift, height, width)[..., :height, :width], images)


def _extended(shift: Tensor, height: int, width: int) -> Tensor:
    """At least as high and wide as this, with zeros to the right and below."""
    return F.pad(shift, (0, max(0, width - shift.shape[-1]), 0, max(0, height - shift.shape[-2])))
