"""Keeps the averaged weights of the teacher that a head with ``DenseTeacher`` learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.hooks import EMAHook
from torch import Tensor, nn

from ..common.runner_parts import plain_model
from ..errors import MoEConfigError
from ..models.distillation import DenseTeacher, Heads
from ..routing.intervention import Intervention, intervene
from ..routing.router import find_routers


class DenseTeacherHook(EMAHook):
    """mmengine's ``EMAHook``, whose averaged model is the teacher of ``distillation=dict(type='DenseTeacher')``.

    The teacher mixes all experts. Averages are evaluated and saved as ``EMAHook`` does: validation and the checkpoint's
    ``state_dict`` have the averaged weights, ``ema_state_dict`` those that are trained; a resumed run continues both.

    Args:
        ema_type: of mmengine's averaged models.
        **kwargs: as of ``EMAHook``, such as ``momentum``.

    Raises:
        MoEConfigError: (before the run) no head has such a distillation.
    """

    def __init__(self, ema_type: str = 'ExponentialMovingAverage', **kwargs: Any) -> None:
        super().__init__(ema_type, **kwargs)

    def before_run(self, runner) -> None:
        """Copies the model and gives its head to the student.

        Raises:
            MoEConfigError: no head has such a distillation.
        """
        super().before_run(runner)
        head = getattr(plain_model(runner), 'bbox_head', None)
        distillation = getattr(head, 'distillation', None)
        if not isinstance(distillation, DenseTeacher):
            raise MoEConfigError(
                'DenseTeacherHook is in the config, but the head is no MoERetinaHead with moe.distillation=dict(type='
                "'DenseTeacher'); set it, or take the hook out"
            )
        distillation.teach = teacher_of(self.ema_model.module.bbox_head)

    def before_train(self, runner) -> None:
        """Starts the averages at the weights, which were initialised after the copy was made."""
        super().before_train(runner)
        if int(self.ema_model.steps) == 0:
            self.ema_model.module.load_state_dict(self.src_model.state_dict())


def teacher_of(head: nn.Module) -> Callable[[Sequence[Tensor]], Heads]:
    """A function that mixes all experts of a head, in evaluation and without gradient."""
    everyone = {name: Intervention(top_k=router.num_experts) for name, router in find_routers(head).items()}

    @torch.no_grad()
    def teach(pyramid: Sequence[Tensor]) -> Heads:
        head.eval()
        with intervene(head, everyone):
            return head(tuple(pyramid))

    return teach
