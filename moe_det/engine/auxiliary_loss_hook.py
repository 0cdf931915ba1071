"""A hook that trains the first epochs with auxiliary losses and the rest without."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from ..errors import MoEConfigError
from ..routing.distillation import DistillationConstraint
from ..routing.router import find_routers
from ..routing.soft_constraints import SoftConstraint


class AuxiliaryLossHook(Hook):
    """Drops the soft constraints' losses after some epochs, an option of arXiv 2204.10598 that is off there.

    The experts can then specialise without being pulled towards balance. The losses stay in the log, as 0; learned gate
    noise goes on. Beside ``MoEHook``::

        custom_hooks = [dict(type='MoEHook'), dict(type='AuxiliaryLossHook', epochs=100)]

    Args:
        epochs: training epochs with auxiliary losses, >= 0; a resumed run counts those before it.

    Raises:
        MoEConfigError: ``epochs`` is no such number, or (when training starts) no layer has a soft constraint.
    """

    def __init__(self, epochs: int) -> None:
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise MoEConfigError(f'AuxiliaryLossHook.epochs={epochs!r}: expected an integer >= 0')
        self.epochs = epochs
        self._weights: list[tuple[SoftConstraint, float]] = []

    def before_train(self, runner) -> None:
        """Finds the soft constraints."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        constraints = [c for router in find_routers(model).values() for c in router.constraints.values()]
        # a distilled gate learns from its own loss: that one is no constraint on the experts' use
        soft = [c for c in constraints if isinstance(c, SoftConstraint) and not isinstance(c, DistillationConstraint)]
        if not soft:
            raise MoEConfigError(
                'AuxiliaryLossHook is in the config, but no MoE layer has a soft constraint whose loss could be '
                'dropped; take the hook out'
            )
        if not self._weights:
            self._weights = [(constraint, constraint.weight) for constraint in soft]

    def before_train_epoch(self, runner) -> None:
        """Sets the weights that hold in this epoch."""
        dropped = runner.epoch >= self.epochs
        for constraint, weight in self._weights:
            constraint.weight = 0.0 if dropped else weight
        if runner.epoch == self.epochs:
            runner.logger.info(f'AuxiliaryLossHook: from epoch {runner.epoch + 1} on without auxiliary losses')
