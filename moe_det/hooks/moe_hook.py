"""The hook that MoE layers need: collects auxiliary losses, logs utilisation, warns of collapse."""

from __future__ import annotations

import functools
from typing import Any

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_reduce
from mmengine.hooks import Hook, LoggerHook
from torch import nn

from ..analysis.usage import FEWEST_ROWS, fewest_living, living_by_slot, usage_in_slots
from ..checks import is_integer
from ..common.runner_parts import optim_wrappers, plain_model
from ..errors import MoEConfigError
from ..routing.collection import attach_collection
from ..routing.experts import ExpertGroup
from ..routing.metrics import Utilisation
from ..routing.records import UsageRecorder
from ..routing.router import Router, find_routers
from ..routing.routing import Usage

INTERVAL_WITHOUT_LOGGER = 50
MOST_LAYERS_LOGGED = 4  # with more, one line of extremes over all layers


class MoEHook(Hook):
    """Adds the layers' auxiliary losses to the detector's and reports how the experts are used.

    While training, every ``interval`` iterations, these scalars go to the log and to every visualisation backend, per
    layer (over all layers when there are more than four); after a validation the same with ``moe_val_`` for ``moe_``:

    - ``moe_load_ratio_max``, ``moe_load_ratio_min``: rows of the most and the least used expert, relative to the
      fair share; 1.0 is fair.
    - ``moe_living_experts``: experts with more than 1 % of the weights, copies with more than 1 % of their shard's.
    - ``moe_gate_entropy``: mean entropy of a row's gate probabilities in bits; with shards, of the choice of one copy.

    A warning is logged if routing collapses: no more experts are living than a single row uses (one, where a row uses
    all), or a single copy of a shard, over at least 20 rows. Validation and test end with a table. With gradient
    accumulation, hard constraints are updated once per optimizer step, from the usage in all of its iterations.

    Args:
        interval: iterations between two logs; by default those of the logger (``default_hooks.logger.interval``).

    Attributes:
        utilisation: by layer, of the last validation or test.
        recent: usage since the last log, by layer.
    """

    priority = 'NORMAL'  # before LoggerHook, which writes what this hook measures

    def __init__(self, interval: int | None = None) -> None:
        if interval is not None and not is_integer(interval, 1):
            raise MoEConfigError(f"MoEHook.interval={interval!r}: expected an integer >= 1, or None for the logger's")
        self.interval = interval
        self.utilisation: dict[str, Utilisation] = {}
        self._model: nn.Module | None = None
        self._routers: dict[str, Router] = {}
        self._handles: list = []
        self.recent: dict[str, Usage] = {}
        self._collapsed: set[str] = set()
        self._optimizer_follows = True
        self._recorder: UsageRecorder | None = None

    def before_run(self, runner) -> None:
        """Finds the MoE layers and attaches to the detector.

        Raises:
            MoEConfigError: the config builds no MoE layer.
        """
        model = plain_model(runner)
        if model is self._model:
            return
        if not any(isinstance(module, (ExpertGroup, Router)) for module in model.modules()):
            raise MoEConfigError(
                "MoEHook is in the config, but the config builds no MoE layer: set bbox_head.type='MoERetinaHead', "
                "backbone.type='MoEResNet', conv_cfg=dict(type='MoEConv2d'), a MoEBlock plugin with at least one "
                "stage or model.type='WithExperts', or take the hook out"
            )
        for handle in self._handles:
            handle.remove()
        self._model, self._routers, self.recent = model, find_routers(model), {}
        self._handles = attach_collection(model, lambda: self._optimizer_follows)
        for name, router in self._routers.items():
            self._handles.append(router.collected.observe(functools.partial(self._add, name)))

    def _add(self, layer: str, usage: Usage) -> None:
        before = self.recent.get(layer)
        self.recent[layer] = usage if before is None else before + usage

    # -- training ----------------------------------------------------------------------------------------------

    def before_train(self, runner) -> None:
        """Takes the logger's interval by default; assumes an optimizer step in every iteration until told otherwise.

        Warns of layers in a frozen part of the detector, which nothing trains.
        """
        if self.interval is None:
            loggers = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
            self.interval = loggers[0] if loggers else INTERVAL_WITHOUT_LOGGER
        self._optimizer_follows = True
        frozen = [name for name, router in self._routers.items() if _is_frozen(router.gate)]
        if frozen:
            runner.logger.warning(
                f'{", ".join(frozen)}: frozen, as backbone.frozen_stages does: gate and experts are not trained and no '
                'constraint acts on them'
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Checks whether an optimizer step follows this iteration."""
        self._optimizer_follows = any(one.should_sync() for one in optim_wrappers(runner))

    def after_train(self, runner) -> None:
        """Leaves the layers as they are without this hook."""
        self._optimizer_follows = True

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Logs the utilisation since the last log."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        routers = self._routers.items()
        layers = {name: usage_in_slots(self.recent[name], r.slots) for name, r in routers if name in self.recent}
        self.recent = {}
        self._log(runner, 'train/moe', layers)
        self._warn_of_collapse(runner, layers)

    @classmethod
    def _log(cls, runner, prefix: str, layers: dict[str, Utilisation]) -> None:
        for tag, value in cls._scalars(layers).items():
            runner.message_hub.update_scalar(f'{prefix}_{tag}', value)

    @staticmethod
    def _scalars(layers: dict[str, Utilisation]) -> dict[str, float]:
        if not layers:
            return {}
        if len(layers) > MOST_LAYERS_LOGGED:
            every = list(layers.values())
            return {
                'load_ratio_max': max(max(u.load_ratio) for u in every),
                'load_ratio_min': min(min(u.load_ratio) for u in every),
                'living_experts': min(u.living for u in every),
                'gate_entropy': sum(u.row_entropy for u in every) / len(every),
            }
        scalars = {}
        for name, u in layers.items():
            scalars[f'load_ratio_max/{name}'] = max(u.load_ratio)
            scalars[f'load_ratio_min/{name}'] = min(u.load_ratio)
            scalars[f'living_experts/{name}'] = u.living
            scalars[f'gate_entropy/{name}'] = u.row_entropy
        return scalars

    def _warn_of_collapse(self, runner, layers: dict[str, Utilisation]) -> None:
        for name, used in layers.items():
            if used.rows < FEWEST_ROWS:
                continue
            router = self._routers[name]
            living = living_by_slot(used, router.slots)
            if min(living) >= fewest_living(router.num_experts, router.top_k, router.slots):
                self._collapsed.discard(name)
            elif name not in self._collapsed:
                self._collapsed.add(name)
                many = 'experts' if router.slots == 1 else f'copies of shard {living.index(min(living))}'
                runner.logger.warning(
                    f'{name}: routing has collapsed: {min(living)} of {router.copies} {many} hold more than 1 % of the '
                    f'weights over the last {self.interval} iterations (load ratios '
                    f'{", ".join(f"{r:.2f}" for r in used.load_ratio)}; 1.00 is fair). Add a constraint, or raise the '
                    'weight of a soft one or lower the threshold of a hard one.'
                )

    # what was used since the last log, or waits for the step of the optimizer, belongs to the resumed run too

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds the usage since the last log and the one that waits for a step."""
        waiting = {name: router.step.waiting for name, router in self._routers.items()}
        for kind, kept in (('recent', self.recent), ('waiting', waiting)):
            checkpoint[f'moe_{kind}_usage'] = {
                name: [sums.cpu() for sums in vars(usage).values()] for name, usage in kept.items() if usage is not None
            }

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Restores them in a resumed run."""
        if not getattr(runner, '_resume', False) or self._model is None:
            return
        recent, waiting = (checkpoint.get(f'moe_{kind}_usage') or {} for kind in ('recent', 'waiting'))
        for name, router in self._routers.items():
            device = router.experts_and_k.device
            if name in recent:
                self.recent[name] = Usage(*recent[name]).to(device)
            if name in waiting:
                router.step.waiting = Usage(*waiting[name]).to(device)

    # -- validation and test -----------------------------------------------------------------------------------

    def before_val_epoch(self, runner) -> None:
        """Starts to sum the usage."""
        if self._recorder is not None:
            self._recorder.stop()  # of a validation that was interrupted
        assert self._model is not None  # found before the run
        self._recorder = UsageRecorder(self._model).start()

    before_test_epoch = before_val_epoch

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Counts every image once."""
        self._count(runner.val_loop, batch_idx)

    def before_test_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Counts every image once."""
        self._count(runner.test_loop, batch_idx)

    def _count(self, loop, batch_idx: int) -> None:
        """Leaves out the image that a sampler repeats so that all processes get as many; it is a process's last."""
        dataloader: Any = getattr(loop, 'dataloader', None)
        sampler, repeated = getattr(dataloader, 'sampler', None), 0
        if isinstance(sampler, DefaultSampler) and batch_idx == len(dataloader) - 1:
            added = range(len(sampler.dataset), sampler.total_size)
            repeated = sum(position % sampler.world_size == sampler.rank for position in added)
        if self._recorder is not None:
            self._recorder.left_out = repeated

    def after_test_epoch(self, runner, metrics=None) -> None:
        """Logs the table."""
        assert self._recorder is not None  # started before the epoch
        self._recorder.stop()
        self.utilisation = {}
        for name, router in self._routers.items():
            usage = self._recorder.usage.get(name)
            if usage is None:  # more processes than images: this one takes part in the sums nevertheless
                zero = torch.zeros(router.num_groups, router.num_experts, device=router.experts_and_k.device)
                usage = Usage(*(zero.clone() for _ in range(3)), *(zero[:, 0].clone() for _ in range(2)))
            for sums in vars(usage).values():
                all_reduce(sums)
            if usage.rows.sum() > 0:
                self.utilisation[name] = usage_in_slots(usage, router.slots)
        if self.utilisation:
            runner.logger.info('Expert utilisation\n' + utilisation_table(self.utilisation))

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Logs the table and the scalars."""
        self.after_test_epoch(runner)
        self._log(runner, 'val/moe_val', self.utilisation)


def utilisation_table(layers: dict[str, Utilisation]) -> str:
    """A plain-text table: one line per layer, the share of the weights of each expert, living experts, entropies."""
    width = max(len(name) for name in [*layers, 'layer'])
    lines = [f'{"layer":{width}}  living  H_s bits  H_u bits  share of the weights per expert']
    for name, used in layers.items():
        shares = ' '.join(f'{share:4.0%}' for share in used.importance_share)
        living = f'{used.living}/{len(used.importance_share)}'
        lines.append(f'{name:{width}}  {living:>6}  {used.row_entropy:8.2f}  {used.batch_entropy:8.2f}  {shares}')
    return '\n'.join(lines)


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
