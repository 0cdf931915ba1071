"""A killed and resumed run is bit-identical to an uninterrupted one."""

from __future__ import annotations

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn

from ..common.atomic_file import unfinished_files
from ..common.runner_parts import optim_wrappers, plain_model
from ..errors import CheckpointError
from .atomic_checkpoints import save_safely
from .exact_resume_data import go_to_iteration, number_from, number_from_zero, place_batches, sampler_seed_of
from .exact_resume_random import PlacedBatches, seed_of, set_generators
from .resume_point import check_resumable, newest_resumable

KEY = 'exact_resume'  # in the checkpoint


class ExactResumeHook(Hook):
    """Makes training resumable: 2N iterations equal N, a kill, ``resume``, and N more, bit for bit.

    mmengine restores weights, optimizer, schedules and log history. This hook adds, for any config:

    - **Random numbers.** Each iteration, and each sample's augmentation, draws from a stream of its own: a function of
      the run's seed and the place (iteration; epoch and position of the sample). So a resumed run, another number of
      data workers, or a validation in between changes nothing.
    - **Data order.** Resuming within an epoch continues with the next batch; earlier batches are skipped without
      loading them. A seed that mmengine drew because the config has none is kept for the sampler too.
    - **Other missing state**: gradients, when a checkpoint falls between the steps of gradient accumulation. A
      validation that was due after the checkpoint and that the kill prevented is run first.
    - **Files.** Checkpoints and ``last_checkpoint`` are written to a temporary file, synced and renamed, and older
      checkpoints are deleted after that. A full disk gives one message, and the old checkpoint stays.
    - **Resuming by itself** (``resume=True`` without ``load_from``) takes the newest good checkpoint of the work folder
      when the last one is truncated or missing, and says so. Checkpoints of other models are refused.

    On GPUs two runs are equal only with ``randomness=dict(seed=..., deterministic=True)``. State that a transform or a
    hook keeps for itself is not in a checkpoint: mmdet's ``CachedMosaic`` and mmengine's ``EarlyStoppingHook``
    restart.
    """

    priority = 'VERY_HIGH'  # the streams are set before other hooks draw

    def __init__(self) -> None:
        self._resumed: dict = {}
        self._first = 0  # batch of the epoch at which the resumed run goes on
        self._validated: tuple[int, int] | None = None
        self._placed: PlacedBatches | None = None
        self._training = False

    # -- start -------------------------------------------------------------------------------------------------

    def before_run(self, runner: Runner) -> None:
        """Chooses the checkpoint where the config only says ``resume=True``.

        Raises:
            CheckpointError: the work folder has checkpoints, and none can be resumed.
        """
        if not getattr(runner, '_resume', False) or getattr(runner, '_has_loaded', False):
            return
        if runner._load_from is not None:
            check_resumable(runner._load_from, 'load_from')
            return
        found = newest_resumable(runner.work_dir, runner.logger.warning)
        if found is not None:
            runner._load_from = found

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps what this hook had saved.

        Raises:
            CheckpointError: the checkpoint to resume is of another model.
        """
        self._resumed = checkpoint.get(KEY) or {}
        if getattr(runner, '_resume', False):
            _check_same_model(plain_model(runner), checkpoint.get('state_dict') or {}, runner._load_from)

    def before_train(self, runner: Runner) -> None:
        """Prepares data, checkpoint writing and, in a resumed run, what the kill left open."""
        self._training = True
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                save_safely(hook, runner.work_dir)
                if is_main_process():
                    _remove_unfinished(runner, hook.out_dir or runner.work_dir)
        resumed, self._resumed = self._resumed, {}
        if runner.iter == 0:
            resumed = {}
        elif not resumed:
            runner.logger.warning(
                'ExactResumeHook: the checkpoint was written without this hook, so the resumed run will not be exactly '
                'what the uninterrupted one would have been'
            )
        loop = runner.train_loop
        self._placed = place_batches(runner, resumed.get('sampler_seed'))
        if self._placed is None:
            runner.logger.warning(
                'ExactResumeHook: the training data loader has no batches of indices (an IterableDataset, or '
                'batch_size=None); order and augmentations of a resumed run will differ'
            )
        unchanged = self._data_unchanged(runner, resumed)
        if isinstance(loop, EpochBasedTrainLoop):
            self._first = self._batches_done(runner) if unchanged else 0
        elif isinstance(loop, IterBasedTrainLoop) and self._placed is not None:
            go_to_iteration(loop, self._placed)
        _set_gradients(plain_model(runner), resumed.get('gradients') or {})
        if resumed and not resumed['validated'] and self._validation_due(runner):
            runner.register_hook(_MissedValidation(), priority='LOWEST')

    def _data_unchanged(self, runner: Runner, resumed: dict) -> bool:
        now = _data_size(runner)
        before = {key: resumed.get(key, value) for key, value in now.items()}
        if now == before:
            return True
        changes = ', '.join(f'{key} was {before[key]}, is {now[key]}' for key in now if now[key] != before[key])
        runner.logger.warning(
            f'ExactResumeHook: the data of the resumed run are not those of the checkpoint ({changes}): the epoch '
            'begins again'
        )
        return False

    def _batches_done(self, runner: Runner) -> int:
        length = len(runner.train_loop.dataloader)
        done = runner.iter - runner.epoch * length
        if not 0 <= done <= length or self._placed is None:
            runner.logger.warning(
                f'ExactResumeHook: iteration {runner.iter} is not in epoch {runner.epoch + 1} of {length} iterations '
                'each, or the data cannot be skipped: the epoch begins again'
            )
            return 0
        if 0 < done < length:
            runner.logger.info(f'Going on with batch {done + 1} of {length} of epoch {runner.epoch + 1}')
        return done

    def _validation_due(self, runner: Runner) -> bool:
        loop = runner.train_loop
        if runner.val_loop is None or self._first:
            return False
        loop._decide_current_val_interval()
        if isinstance(loop, EpochBasedTrainLoop):
            done, last = runner.epoch, loop.max_epochs
        else:
            done, last = runner.iter, loop.max_iters
        return done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)

    # -- random streams ----------------------------------------------------------------------------------------

    def before_train_epoch(self, runner: Runner) -> None:
        """Starts the epoch's streams, at the batch after the last one of the checkpoint."""
        set_generators(seed_of(runner.seed, 'epoch', runner.epoch), accelerators=True)
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        first, self._first = self._first, 0
        if self._placed is not None:
            self._placed.start(runner.epoch, skip=first)
        number_from_zero(loop)
        if first:
            number_from(loop, first)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Starts the iteration's stream."""
        set_generators(seed_of(runner.seed, 'iteration', runner.iter), accelerators=True)

    def before_val_epoch(self, runner: Runner) -> None:
        """Starts the stream of a validation within a training."""
        if self._training:
            set_generators(seed_of(runner.seed, 'validation', runner.iter), accelerators=True)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Notes that this validation is done; CheckpointHook, which comes later, may save again."""
        if self._training:
            self._validated = (runner.epoch, runner.iter)

    # -- checkpoint --------------------------------------------------------------------------------------------

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds plain numbers, and gradients where a step of gradient accumulation is under way."""
        meta = checkpoint['meta']
        checkpoint[KEY] = {
            'sampler_seed': sampler_seed_of(runner.train_loop.dataloader),
            **_data_size(runner),
            'validated': self._validated == (meta['epoch'], meta['iter']),
        }
        if 'optimizer' in checkpoint and _accumulating(runner):
            named = plain_model(runner).named_parameters()
            checkpoint[KEY]['gradients'] = {name: p.grad.detach().cpu() for name, p in named if p.grad is not None}
            if runner.world_size > 1:
                runner.logger.warning(
                    'ExactResumeHook: this checkpoint falls between steps of gradient accumulation and holds the '
                    'gradients of rank 0 only: let the checkpoint interval be a multiple of accumulative_counts'
                )


class _MissedValidation(Hook):
    """Validates before training goes on; comes last, when all hooks are ready."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        runner.logger.info('Validating first: the checkpoint was saved before the validation that was due')
        runner.val_loop.run()


def _data_size(runner: Runner) -> dict[str, int]:
    loader = runner.train_loop.dataloader
    batch = getattr(loader.batch_sampler, 'batch_size', None)
    sizes = dict(batches_per_epoch=len(loader), images_per_step=batch and batch * runner.world_size)
    return {key: value for key, value in sizes.items() if isinstance(value, int)}


def _accumulating(runner: Runner) -> bool:
    return any(wrapper._inner_count % wrapper._accumulative_counts for wrapper in optim_wrappers(runner))


def _set_gradients(model: nn.Module, gradients: dict) -> None:
    for name, parameter in model.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter.device)


def _remove_unfinished(runner: Runner, folder: str) -> None:
    for path in {*unfinished_files(folder), *unfinished_files(runner.work_dir)}:
        path.unlink(missing_ok=True)
        runner.logger.info(f'Removed {path}, which a killed run had not finished')


def _check_same_model(model: nn.Module, state: dict, path: str) -> None:
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    shapes = {key: tuple(value.shape) for key, value in own.items() if hasattr(value, 'shape')}
    other = [
        f'{key} is {tuple(state[key].shape)} there, {s} here'
        for key, s in shapes.items()
        if key in state and tuple(state[key].shape) != s
    ]
    if not missing and not other:
        return
    first = other[0] if other else f'{missing[0]} is missing'
    raise CheckpointError(
        f'{path}: cannot be resumed, it is of another model: {len(missing)} of {len(own)} tensors are missing and '
        f'{len(other)} have other shapes, for example {first}. Resume with the config of that run, or start from its '
        'weights: load_from without resume'
    )
