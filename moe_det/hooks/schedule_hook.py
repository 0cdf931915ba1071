"""A hook that anneals gate noise, temperature, balance and the number of chosen experts while training."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from mmengine.hooks import Hook

from ..checks import is_integer, is_number
from ..common.runner_parts import plain_model
from ..errors import MoEConfigError, unknown_name
from ..routing.annealing import Annealing
from ..routing.router import Router, find_routers

NOBODY = {
    'noise': 'no MoE layer has gate noise; set moe.noise=True',
    'balance': 'no MoE layer has a soft constraint',
    'top_k': 'every MoE layer has shards, of each of which a row takes one copy',
}


@dataclass(frozen=True)
class Schedule:
    """A straight line over the first part of a training, then a constant.

    Attributes:
        start: value at the first iteration.
        end: value from ``until`` on.
        until: share of all iterations, in (0, 1].
    """

    start: float
    end: float
    until: float

    def at(self, progress: float) -> float:
        """The value after a share of all iterations."""
        if progress >= self.until:
            return self.end
        return self.start + (self.end - self.start) * progress / self.until


class MoEScheduleHook(Hook):
    """Anneals the gates while training: noise, temperature, weight of the soft constraints, number of experts.

    Each schedule is a dict of ``start``, ``end`` and ``until``: the value goes linearly from ``start`` to ``end`` over
    the first ``until`` of all iterations (0.33: a third) and stays there. It depends on the iteration alone, so a
    resumed run continues bit for bit. Validation and test always choose as the config says: no noise, temperature 1,
    its ``top_k``. A schedule acts on every layer that has what it changes. Use it together with ``MoEHook``::

        custom_hooks = [
            dict(type='MoEHook'),
            dict(type='MoEScheduleHook', temperature=dict(start=2.0, end=1.0, until=0.33)),
        ]

    Args:
        noise: factor of the learned gate noise, >= 0.
        temperature: what logits and noise are divided by, > 0; it ends at 1.
        balance: factor of the soft constraints' losses, >= 0.
        top_k: experts per routing row, rounded; it ends at the config's ``top_k``. Early steps then cost more.

    Raises:
        MoEConfigError: no schedule, an invalid one, or (when training starts) one that no layer can follow.
    """

    def __init__(
        self,
        noise: dict | None = None,
        temperature: dict | None = None,
        balance: dict | None = None,
        top_k: dict | None = None,
    ) -> None:
        given = dict(noise=noise, temperature=temperature, balance=balance, top_k=top_k)
        self.schedules = {key: _read(key, value) for key, value in given.items() if value is not None}
        if not self.schedules:
            raise MoEConfigError(f'MoEScheduleHook: expected at least one of {", ".join(given)}')
        self._routers: dict[str, list[Router]] = {}

    def before_train(self, runner) -> None:
        """Finds the layers that follow each schedule."""
        model = plain_model(runner)
        routers = find_routers(model)
        self._routers = {key: [r for r in routers.values() if _follows(r, key)] for key in self.schedules}
        for key, found in self._routers.items():
            if not found:
                reason = NOBODY[key] if routers and key in NOBODY else 'the config builds no MoE layer with a gate'
                raise MoEConfigError(f'MoEScheduleHook.{key}: {reason}, or take the schedule out')
        for router in self._routers.get('top_k', ()):
            schedule = self.schedules['top_k']
            if schedule.end != router.top_k or schedule.start > router.num_experts:
                raise MoEConfigError(
                    f'MoEScheduleHook.top_k: start={schedule.start}, end={schedule.end}: expected end={router.top_k}, '
                    f'the top_k of {router.label}, and a start up to its num_experts={router.num_experts}'
                )

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Sets the values of this iteration."""
        progress = runner.iter / runner.max_iters
        for key, schedule in self.schedules.items():
            value = schedule.at(progress)
            self._set(key, math.floor(value + 0.5) if key == 'top_k' else value)

    def after_train(self, runner) -> None:
        """Leaves the layers as they are without this hook."""
        for key in self.schedules:
            self._set(key, getattr(Annealing, key))

    def _set(self, key: str, value: Any) -> None:
        for router in self._routers[key]:
            router.annealing = replace(router.annealing, **{key: value})


def _follows(router: Router, key: str) -> bool:
    """Whether a layer has what a schedule changes."""
    if key == 'noise':
        return router.noise is not None
    if key == 'balance':
        return any(constraint.scheduled for constraint in router.constraints.values())
    return key != 'top_k' or router.slots == 1


def _read(key: str, value: object) -> Schedule:
    """A schedule of the config, checked."""
    where = f'MoEScheduleHook.{key}'
    names = [field.name for field in fields(Schedule)]
    if not isinstance(value, dict):
        raise MoEConfigError(f'{where}={value!r}: expected a dict of {", ".join(names)}')
    for name in value:
        if name not in names:
            raise MoEConfigError(f'{where}: {unknown_name("key", name, names)}')
    for name in names:
        number: Any = value.get(name)
        whole = key == 'top_k' and name != 'until'
        fits = is_integer(number, 1) if whole else is_number(number, 0)
        if name == 'until':
            fits, expected = fits and 0 < number <= 1, 'a share of all iterations in (0, 1]'
        elif whole:
            expected = 'an integer >= 1'
        elif key == 'temperature' and name == 'end':
            fits, expected = fits and number == 1, '1, the temperature of validation and test'
        elif key == 'temperature':
            fits, expected = fits and number > 0, 'a number > 0'
        else:
            expected = 'a number >= 0'
        if not fits:
            raise MoEConfigError(f'{where}.{name}={number!r}: expected {expected}')
    return Schedule(**value)
