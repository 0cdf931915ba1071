"""A loss for gates that change their mind when the image is flipped, scaled or noisy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import is_number
from ..common.image_changes import Changer, changed_samples, read_changes
from ..common.runner_parts import plain_model
from ..errors import MoEConfigError
from ..routing.constraint import FORBIDDEN
from ..routing.router import Router, find_routers
from ..routing.rows import RowLayout
from ..routing.second_look import comparable_routers, matched_rows, run_until_decided
from ..routing.selection import log_probabilities

Seen = tuple[Sequence[Tensor], RowLayout, Sequence[Tensor] | None]  # what a router is called with


class RoutingConsistencyHook(Hook):
    """Adds ``loss_moe_consistency``: KL(p(x) || p(x')) of the gates, x' a changed copy of the images, p(x) fixed.

    p are the probabilities of all experts without noise; the loss is the mean over a layer's rows, in nats, summed over
    layers. Patches of a flipped image are compared with their mirrored ones. In every step one of the changes is drawn.
    The model runs on x' without gradient and only until the last gate has decided, and the loss trains gates alone;
    ground truth is not needed for x'. It costs about a forward of what lies before the gates.

    Source: the router's term of AdvMoE, arXiv 2308.10110, whose weight is 6 and whose x' is an attacked image, in a
    step of its own that trains the router alone. Changes in place of attacks, that the loss is added to the others, and
    its weight are our choice. Layers inside activation checkpointing are not supported::

        custom_hooks = [dict(type='MoEHook'), dict(type='RoutingConsistencyHook', changes=['flip', 'noise:8'])]

    Args:
        weight: factor of the loss, >= 0.
        changes: a list of ``flip`` (horizontal), ``noise:X`` (standard deviation in pixel values), ``scale:X`` (factor
            of height and width), ``brightness:X`` and ``jpeg:X`` (quality).

    Raises:
        MoEConfigError: a weight or change that is not as expected or, before the run, no layer whose rows can be
            compared (units ``level``, ``image`` and ``patch`` can).
    """

    def __init__(self, weight: float = 1.0, changes: Sequence[str] = ('flip', 'noise:8', 'scale:0.75')) -> None:
        if not is_number(weight, 0):
            raise MoEConfigError(f'RoutingConsistencyHook.weight={weight!r}: expected a number >= 0')
        self.weight = weight
        self.changes = read_changes(changes, 'RoutingConsistencyHook.changes')
        self._handles: list = []
        self._generator = torch.Generator()

    def before_run(self, runner) -> None:
        """Attaches to the model.

        Raises:
            MoEConfigError: it has no layer whose rows can be compared.
        """
        model = plain_model(runner)
        try:
            everyone = find_routers(model)
            routers = comparable_routers(everyone)
        except MoEConfigError as error:
            raise MoEConfigError(f'RoutingConsistencyHook: {error}') from error
        for handle in self._handles:
            handle.remove()
        look = _Look(everyone, routers, self)
        self._handles = [
            model.register_forward_pre_hook(look.start, with_kwargs=True),
            model.register_forward_hook(look.add_loss, with_kwargs=True),
            *(router.register_forward_pre_hook(look.see(name)) for name, router in routers.items()),
        ]

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Draws from the run's seed and the iteration: a resumed run draws the same."""
        self._generator.manual_seed((runner.seed or 0) * 1_000_003 + runner.iter)

    def draw(self) -> tuple[Any, torch.Generator]:
        """The change of this step, and what it draws its numbers from."""
        number = int(torch.randint(len(self.changes), (), generator=self._generator))
        return self.changes[number], self._generator


class _Look:
    """What routers see of the images and of the changed images of a step."""

    def __init__(self, everyone: dict[str, Router], routers: dict[str, Router], hook: RoutingConsistencyHook) -> None:
        self.everyone, self.routers, self.hook = everyone, routers, hook
        self.first: dict[str, list[tuple[Tensor, RowLayout]]] | None = None  # None outside a training forward
        self.second: dict[str, list[Seen]] | None = None

    def start(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        training = module.training and kwargs.get('mode') == 'loss'
        self.first = {name: [] for name in self.routers} if training else None

    def see(self, name: str) -> Any:
        def note(router: nn.Module, args: tuple) -> None:
            rows, layout, keys = (*args, None)[:3]
            if self.second is not None:
                self.second[name].append((rows, layout, keys))
            elif self.first is not None:
                with torch.no_grad(), _kept_statistics(router):
                    logits = self.routers[name].gate_logits(rows, layout, keys)
                    self.first[name].append((log_probabilities(logits, self.routers[name].slots), layout))

        return note

    def add_loss(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: object) -> object:
        first, self.first = self.first, None
        if first is None or not isinstance(output, dict):
            return output
        change, generator = self.hook.draw()
        self.second = {name: [] for name in self.routers}
        try:
            inputs = kwargs['inputs']
            changed = Changer(module.data_preprocessor)(inputs, change, generator)
            rest = {key: value for key, value in kwargs.items() if key not in ('inputs', 'mode')}
            if 'data_samples' in rest:
                rest['data_samples'] = changed_samples(rest['data_samples'], inputs.shape, changed.shape)
            calls = {name: len(seen) for name, seen in first.items()}
            with torch.no_grad(), _kept_statistics(module):
                # not module(...): its hooks belong to the step
                run_until_decided(lambda: module.forward(changed, **rest, mode='tensor'), self.everyone, calls)
            losses = []
            for name, router in self.routers.items():
                calls_of = list(zip(first[name], self.second[name], strict=True))  # several where levels are separate
                if calls_of:
                    sums = [self._divergence(router, *call, change.mirrors) for call in calls_of]
                    rows = sum(len(log_p) for (log_p, _), _ in calls_of)
                    losses.append(torch.stack(sums).sum() / max(1, rows))
        finally:
            self.second = None
        return {**output, 'loss_moe_consistency': self.hook.weight * torch.stack(losses).sum()} if losses else output

    @staticmethod
    def _divergence(router: Router, before: tuple[Tensor, RowLayout], seen: Seen, mirrored: bool) -> Tensor:
        """Sum over rows of KL(p(x) || p(x')) in nats, with gradient for the gate.

        Rows whose experts a constraint has taken from them after the change (another cluster's image) give nothing: no
        gate could agree there.
        """
        log_p, layout = before
        rows, changed, keys = seen
        with _kept_statistics(router):
            log_q = log_probabilities(router.gate_logits(rows, changed, keys), router.slots)
        log_q = log_q[matched_rows(layout, changed, mirrored).to(log_q.device)]
        taken = (log_p.exp() > 0) & (log_q < FORBIDDEN / 2)
        return (log_p.exp() * (log_p - log_q)).sum(1)[~taken.any(1)].sum()


@contextmanager
def _kept_statistics(model: nn.Module) -> Iterator[None]:
    """Norms compute as they do in training, and their running statistics stay."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    before = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, count in zip(norms, before, counts, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
