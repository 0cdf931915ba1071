"""A hook that trains the first part with auxiliary losses and the rest without."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from ..checks import check_count
from ..common.runner_parts import plain_model
from ..errors import MoEConfigError
from ..routing.distillation import DistillationConstraint
from ..routing.router import find_routers
from ..routing.soft_constraints import SoftConstraint


class AuxiliaryLossHook(Hook):
    """Drops the soft constraints' losses after a part of the training, an option of arXiv 2204.10598 that is off there.

    The experts can then specialise without being pulled towards balance. The losses stay in the log, as 0; learned gate
    noise continues. Use it together with ``MoEHook``; in an ``IterBasedTrainLoop`` give ``iterations``::

        custom_hooks = [dict(type='MoEHook'), dict(type='AuxiliaryLossHook', epochs=100)]

    Args:
        epochs: training epochs with auxiliary losses, >= 0; a resumed run counts those before it.
        iterations: training iterations with auxiliary losses, instead of ``epochs``.

    Raises:
        MoEConfigError: not exactly one of the two is given, it is not such a number, or (when training starts) no layer
            has a soft constraint, or ``epochs`` are given to a training that counts none.
    """

    def __init__(self, epochs: int | None = None, iterations: int | None = None) -> None:
        given = {'epochs': epochs, 'iterations': iterations}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise MoEConfigError(f'AuxiliaryLossHook: epochs={epochs}, iterations={iterations}: expected one of them')
        ((self.unit, self.last),) = given.items()
        check_count('AuxiliaryLossHook', self.unit, self.last, minimum=0)
        self._weights: list[tuple[SoftConstraint, float]] = []

    def before_train(self, runner) -> None:
        """Finds the soft constraints.

        Raises:
            MoEConfigError: there is none, or the training counts no epochs.
        """
        if self.unit == 'epochs' and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise MoEConfigError(
                f'AuxiliaryLossHook.epochs={self.last}: train_cfg counts iterations and knows no epochs; use '
                'iterations=N'
            )
        model = plain_model(runner)
        constraints = [c for router in find_routers(model).values() for c in router.constraints.values()]
        # a distilled gate learns from its own loss: that one is not a constraint on the experts' use
        soft = [c for c in constraints if isinstance(c, SoftConstraint) and not isinstance(c, DistillationConstraint)]
        if not soft:
            raise MoEConfigError(
                'AuxiliaryLossHook is in the config, but no MoE layer has a soft constraint whose loss could be '
                'dropped; take the hook out'
            )
        if not self._weights:
            self._weights = [(constraint, constraint.weight) for constraint in soft]

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Sets the weights that hold in this iteration."""
        now = runner.epoch if self.unit == 'epochs' else runner.iter
        dropped = now >= self.last
        if dropped and any(constraint.weight for constraint, _ in self._weights):
            runner.logger.info(f'AuxiliaryLossHook: iteration {runner.iter + 1}: auxiliary losses are off')
        for constraint, weight in self._weights:
            constraint.weight = 0.0 if dropped else weight
