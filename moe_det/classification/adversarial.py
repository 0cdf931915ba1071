"""Adversarial training and testing of image classifiers: the batch is replaced by attacked images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from ..attacks.perturbations import Ball, pgd
from ..checks import check_count, is_number
from ..common.runner_parts import plain_model
from ..errors import MoEConfigError
from ..routing.router import find_routers


class PGDHook(Hook):
    """Projected gradient ascent on the cross entropy of a batch (arXiv 1706.06083), for a classifier of this package.

    The classifier is in evaluation mode while it is attacked, as in the code of arXiv 2509.05086: norms use their
    running statistics, gates decide without noise. Starts are drawn uniformly from the ball. What replaces the batch
    is the image after the last step, clamped to 0 ... 1 before the normalisation.

    Args:
        steps: of the attack.
        eps: largest change of a pixel, of 255.
        step: size of a step, of 255.

    Raises:
        MoEConfigError: a value that is no number above 0.
    """

    def __init__(self, steps: int, eps: float = 8.0, step: float = 2.0) -> None:
        check_count(type(self).__name__, 'steps', steps)
        for key, value in (('eps', eps), ('step', step)):
            if not is_number(value, 0.0) or value == 0:
                raise MoEConfigError(f'{type(self).__name__}.{key}={value!r}: expected a number > 0')
        self.steps, self.eps, self.step = steps, eps / 255, step / 255

    def attack(self, runner: Runner, data: dict) -> None:
        """Replaces the images of a batch ``dict(inputs=(N, C, H, W), labels=(N,))`` by attacked ones, in 0 ... 1."""
        model = plain_model(runner)
        data['inputs'] = self.attacked(model, data['inputs'], data['labels'])

    def attacked(self, model: BaseModel, inputs: Tensor, labels: Tensor) -> Tensor:
        """The attacked images (N, C, H, W) in 0 ... 1.

        Args:
            model: a classifier, in any mode.
            inputs: (N, C, H, W) bytes, or numbers in 0 ... 1.
            labels: (N,) classes.
        """
        device = next(model.parameters()).device
        images = inputs.to(device).float() if inputs.is_floating_point() else inputs.to(device).float() / 255
        labels = labels.to(device)

        def cross_entropy(found: Tensor) -> Tensor:
            scores = model(**model.data_preprocessor({'inputs': found, 'labels': labels}, False), mode='tensor')
            return F.cross_entropy(scores, labels, reduction='none')

        with _evaluation(model):
            return pgd(images, cross_entropy, Ball(self.eps, 0.0, 1.0), self.steps, self.step)


class AdversarialTrainingHook(PGDHook):
    """Trains on attacked images alone, seven steps of 2/255 within 8/255 by default (arXiv 2509.05086).

    Args:
        steps: of the attack.
        eps: largest change of a pixel, of 255.
        step: size of a step, of 255.
    """

    def __init__(self, steps: int = 7, eps: float = 8.0, step: float = 2.0) -> None:
        super().__init__(steps, eps, step)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Attacks the batch."""
        if data_batch is not None:
            self.attack(runner, data_batch)


class AdversarialTestHook(PGDHook):
    """Tests on attacked images, twenty steps of 2/255 within 8/255 by default (arXiv 2509.05086).

    Validation, by which checkpoints are compared during training, stays on clean images.

    Args:
        steps: of the attack.
        eps: largest change of a pixel, of 255.
        step: size of a step, of 255.
    """

    def __init__(self, steps: int = 20, eps: float = 8.0, step: float = 2.0) -> None:
        super().__init__(steps, eps, step)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Attacks the batch."""
        if data_batch is not None:
            self.attack(runner, data_batch)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode and each of its modules back into its own.

    Who counts the decisions of its layers is not told of those in between, which belong to no image of the run.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    with ExitStack() as stack:
        for router in find_routers(model).values():
            stack.enter_context(router.decided.silenced())
        try:
            yield
        finally:
            for module in training:
                module.training = True
