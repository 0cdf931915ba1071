"""The hook that MoE layers need: collects auxiliary losses, logs utilisation, warns of collapse."""

from __future__ import annotations

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_reduce
from mmengine.hooks import Hook, LoggerHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from torch import nn

from ..analysis.usage import collapsed, living_by_slot, usage_in_slots
from ..errors import MoEConfigError
from ..routing.collection import attach_collection
from ..routing.experts import ExpertGroup
from ..routing.metrics import Utilisation
from ..routing.records import UsageRecorder
from ..routing.router import find_routers
from ..routing.routing import Usage

INTERVAL_WITHOUT_LOGGER = 50
MOST_LAYERS_LOGGED = 4  # with more, one line of extremes over all layers
KEPT_USAGE = ('recent', 'waiting')  # of a router, in checkpoints
FEWEST_ROWS_JUDGED = 20  # fewer may fall on the same experts by chance (two experts, top-1, fair: 2 in a million)


class MoEHook(Hook):
    """Adds the layers' auxiliary losses to the detector's and reports how the experts are used.

    While training, every ``interval`` iterations, these scalars go to the log and to every visualisation backend, per
    layer (over all layers when there are more than four); after a validation the same with ``moe_val_`` for ``moe_``:

    - ``moe_load_ratio_max``, ``moe_load_ratio_min``: rows of the most and the least used expert over the fair share;
      1.0 is fair.
    - ``moe_living_experts``: experts with more than 1 % of the weights, copies with more than 1 % of their shard's.
    - ``moe_gate_entropy``: mean entropy of a row's gate probabilities in bits; with shards, of the choice of one copy.

    A warning appears when no more experts live than a single row uses, or a single copy of a shard, over at least 20
    rows. Validation and test end with a table. With gradient accumulation the state of hard constraints moves once per
    step of the optimizer, by the usage in all of its iterations.

    Args:
        interval: iterations between two logs; by default those of the logger (``default_hooks.logger.interval``).

    Attributes:
        utilisation: by layer, of the last validation or test.
    """

    priority = 'NORMAL'  # before LoggerHook, which writes what this hook measures

    def __init__(self, interval: int | None = None) -> None:
        if interval is not None and (isinstance(interval, bool) or not isinstance(interval, int) or interval < 1):
            raise MoEConfigError(f"MoEHook.interval={interval!r}: expected an integer >= 1, or None for the logger's")
        self.interval = interval
        self.utilisation: dict[str, Utilisation] = {}
        self._model: nn.Module | None = None
        self._handles = []
        self._collapsed: set[str] = set()
        self._step_follows = True
        self._recorder: UsageRecorder | None = None

    def before_run(self, runner) -> None:
        """Finds the MoE layers and attaches to the detector.

        Raises:
            MoEConfigError: the config builds no MoE layer.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if model is self._model:
            return
        if not any(isinstance(module, ExpertGroup) for module in model.modules()):
            raise MoEConfigError(
                "MoEHook is in the config, but the config builds no MoE layer: set bbox_head.type='MoERetinaHead', "
                "backbone.type='MoEResNet', conv_cfg=dict(type='MoEConv2d'), a MoEBlock plugin with at least one "
                "stage or model.type='WithExperts', or take the hook out"
            )
        for handle in self._handles:
            handle.remove()
        self._model = model
        self._handles = attach_collection(model)
        for router in find_routers(model).values():
            router.monitored = True

    # -- training ----------------------------------------------------------------------------------------------

    def before_train(self, runner) -> None:
        """Takes the logger's interval by default; assumes an optimizer step in every iteration until told otherwise."""
        if self.interval is None:
            loggers = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
            self.interval = loggers[0] if loggers else INTERVAL_WITHOUT_LOGGER
        self._say(step_follows=True)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Tells the layers whether a step of the optimizer follows this iteration."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        follows = any(one.should_sync() for one in wrappers)
        if follows != self._step_follows:
            self._say(step_follows=follows)

    def after_train(self, runner) -> None:
        """Leaves the layers as they are without this hook."""
        self._say(step_follows=True)

    def _say(self, step_follows: bool) -> None:
        self._step_follows = step_follows
        for router in find_routers(self._model).values():
            router.step_follows = step_follows

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Logs the utilisation since the last log."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        layers = {}
        for name, router in find_routers(self._model).items():
            if router.recent is not None:
                layers[name] = usage_in_slots(router.recent, router.slots)
                router.recent = None
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
        routers = find_routers(self._model)
        for name, used in layers.items():
            if used.rows < FEWEST_ROWS_JUDGED:
                continue
            router = routers[name]
            if not collapsed(used, router.top_k, router.slots):
                self._collapsed.discard(name)
            elif name not in self._collapsed:
                self._collapsed.add(name)
                living = living_by_slot(used, router.slots)
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
        for kind in KEPT_USAGE:
            kept = {name: getattr(router, kind) for name, router in find_routers(self._model).items()}
            checkpoint[f'moe_{kind}_usage'] = {
                name: [sums.cpu() for sums in vars(usage).values()] for name, usage in kept.items() if usage is not None
            }

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Takes them back in a resumed run."""
        if not getattr(runner, '_resume', False) or self._model is None:
            return
        for kind in KEPT_USAGE:
            kept = checkpoint.get(f'moe_{kind}_usage') or {}
            for name, router in find_routers(self._model).items():
                if name in kept:
                    setattr(router, kind, Usage(*kept[name]).to(router.experts_and_k.device))

    # -- validation and test -----------------------------------------------------------------------------------

    def _start_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.stop()  # of a validation that was interrupted
        self._recorder = UsageRecorder(self._model).start()

    def _stop_recording(self, runner) -> None:
        self._recorder.stop()
        self.utilisation = {}
        for name, router in self._recorder.routers.items():
            usage = self._recorder.usage.get(name)
            if usage is None:  # more processes than images: this one takes part in the sums nevertheless
                device = router.experts_and_k.device
                experts = [torch.zeros(1, router.num_experts, device=device) for _ in range(3)]
                usage = Usage(*experts, *(torch.zeros(1, device=device) for _ in range(2)))
            for sums in (usage.importance, usage.load, usage.probs, usage.entropy, usage.rows):
                all_reduce(sums)
            if usage.rows.sum() > 0:
                self.utilisation[name] = usage_in_slots(usage, router.slots)
        if self.utilisation:
            runner.logger.info('Expert utilisation\n' + utilisation_table(self.utilisation))

    def _count(self, loop, batch_idx: int) -> None:
        """Leaves out the image that a sampler repeats so that all processes get as many; it is a process's last."""
        dataloader = getattr(loop, 'dataloader', None)
        sampler, repeated = getattr(dataloader, 'sampler', None), 0
        if isinstance(sampler, DefaultSampler) and batch_idx == len(dataloader) - 1:
            added = range(len(sampler.dataset), sampler.total_size)
            repeated = sum(position % sampler.world_size == sampler.rank for position in added)
        self._recorder.left_out = repeated

    def before_val_epoch(self, runner) -> None:
        """Starts to sum the usage."""
        self._start_recording()

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Counts every image once."""
        self._count(runner.val_loop, batch_idx)

    def before_test_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Counts every image once."""
        self._count(runner.test_loop, batch_idx)

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Logs the table and the scalars."""
        self._stop_recording(runner)
        self._log(runner, 'val/moe_val', self.utilisation)

    def before_test_epoch(self, runner) -> None:
        """Starts to sum the usage."""
        self._start_recording()

    def after_test_epoch(self, runner, metrics=None) -> None:
        """Logs the table."""
        self._stop_recording(runner)


def utilisation_table(layers: dict[str, Utilisation]) -> str:
    """A plain-text table: one line per layer, the share of the weights of each expert, living experts, entropies."""
    width = max(len(name) for name in [*layers, 'layer'])
    lines = [f'{"layer":{width}}  living  H_s bits  H_u bits  share of the weights per expert']
    for name, used in layers.items():
        shares = ' '.join(f'{share:4.0%}' for share in used.importance_share)
        living = f'{used.living}/{len(used.importance_share)}'
        lines.append(f'{name:{width}}  {living:>6}  {used.row_entropy:8.2f}  {used.batch_entropy:8.2f}  {shares}')
    return '\n'.join(lines)
