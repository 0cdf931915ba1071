"""The hook that stops a training at the first gate logit, loss or gradient that is NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, is_distributed
from mmengine.hooks import Hook
from torch import Tensor, nn

from ..called import command
from ..checks import check_count
from ..common.checkpoints import latest_checkpoint
from ..common.runner_parts import optim_wrappers, plain_model
from ..errors import NonFiniteError
from ..routing.router import find_routers
from ..routing.routing import Routing
from ..routing.rows import RowLayout
from .non_finite import describe_images, first_bad_layer, flag_of_gradients, non_finite_parameters


class FiniteHook(Hook):
    """Stops training at the first gate logit, loss or gradient that is NaN or infinite, before the weights change.

    The message names the layer, the iteration and the images of the batch. All processes stop in the same iteration
    with the same message. The weights of the last good step and the last checkpoint stay as they are; nothing is saved
    afterwards. Gate logits are also watched in validation and test.

    The checks are computed on the device and read back once per step, just before the optimizer's step. Under a loss
    scale (fp16) an infinite gradient lets the scaler skip the step, as it should, and stops nothing; losses and logits
    are still watched, and so is a scaler that only skips.

    Args:
        max_skipped_steps: iterations in a row in which a loss scaler may skip the optimizer's step. Each skip halves
            the scale, so that after 50 it is practically zero.
    """

    priority = 'VERY_HIGH'  # before anything is logged, averaged or saved

    def __init__(self, max_skipped_steps: int = 50) -> None:
        check_count('FiniteHook', 'max_skipped_steps', max_skipped_steps)
        self.max_skipped_steps = max_skipped_steps
        self._handles: list = []
        self._runner: Any = None
        self._forget()
        self._skipped = 0

    def _forget(self) -> None:
        self._logits: list[tuple[str, Tensor]] = []
        self._losses: dict[str, Tensor] = {}
        self._inputs: tuple | None = None
        self._checked = True

    # -- what is watched ---------------------------------------------------------------------------------------

    def before_train(self, runner) -> None:
        """Attaches to the detector, its gates and the optimizer."""
        self._detach()
        self._runner = runner
        self._skipped = 0
        model = self._attach_gates(runner)
        self._handles.append(model.register_forward_hook(self._see_losses, with_kwargs=True))
        for one in optim_wrappers(runner):
            self._handles.append(one.optimizer.register_step_pre_hook(self._before_step))

    def _attach_gates(self, runner) -> nn.Module:
        model = plain_model(runner)
        for name, router in find_routers(model).items():

            def see(routing: Routing, layout: RowLayout, name: str = name) -> None:
                self._logits.append((name, routing.logits.detach()))
                self._checked = False

            self._handles.append(router.decided.observe(see))
        return model

    def _see_losses(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        if not module.training or kwargs.get('mode') != 'loss' or not isinstance(output, Mapping):
            return
        self._inputs = args, kwargs
        self._checked = False
        for name, value in output.items():
            parts = value if isinstance(value, Sequence) else [value]
            tensors = [part.detach() for part in parts if isinstance(part, Tensor)]
            if tensors and 'loss' in name:
                self._losses[name] = torch.stack([t.float().sum() for t in tensors]).sum()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._forget()

    def after_train(self, runner) -> None:
        """Lets go of model and optimizer."""
        self._detach()

    # -- the check ---------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        gradients = flag_of_gradients(p.grad for group in optimizer.param_groups for p in group['params'])
        # a loss scaler steps a fused optimizer in any case: its kernels read there whether to leave the weights alone
        overflow = getattr(optimizer, 'found_inf', None)
        if self._check(gradients, None if overflow is None else overflow.reshape(()) > 0):
            self._skipped = -1  # this iteration steps

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Checks an iteration without a step: gradient accumulation, or one that the loss scaler skipped.

        Raises:
            NonFiniteError: a gate logit or loss is NaN or infinite, or the loss scaler skips every step.
        """
        if not self._checked:
            self._check(None)
        self._forget()
        self._skipped += 1
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if scaler is not None and self._skipped >= self.max_skipped_steps * accumulated:
            raise NonFiniteError(
                f'iteration {runner.iter + 1}: the loss scaler has skipped the step of {self._skipped} iterations in '
                f'a row and is down to a scale of {scaler.get_scale():g}: gradients are NaN or infinite whatever the '
                f'scale.{self._advice()}'
            )

    def _check(self, gradients: Tensor | None, overflow: Tensor | None = None) -> bool:
        """Reads all flags back at once; the slow search for names comes only after a bad one.

        Args:
            gradients: whether they are finite; None where nothing steps.
            overflow: whether the loss scaler found that they are not, and has the step skipped.

        Returns:
            bool: whether the step changes the weights.
        """
        flags = [torch.isfinite(logits).all() for _, logits in self._logits]
        flags += [torch.isfinite(loss) for loss in self._losses.values()]
        if gradients is not None:
            flags.append(gradients if overflow is None else gradients | overflow.to(gradients.device))
        self._checked = True
        if not flags:
            return True
        good = torch.stack([flag.to(flags[-1].device) for flag in flags]).all().to(torch.int32)
        # one number tells all: 0 for a fault, 1 for a skipped step, 2 for a good one
        state = 2 * good if overflow is None else good * (2 - overflow.to(good))
        if is_distributed():
            all_reduce(state, op='min')  # all stop together, and each can say what it saw
        worst = int(state.item())
        if not worst:
            self._stop(gradients)
        return worst == 2

    def _stop(self, gradients: Tensor | None) -> None:
        faults = [
            f'gate logits of {name} ({int((~torch.isfinite(logits)).any(1).sum())} of {len(logits)} rows)'
            for name, logits in self._logits
            if not torch.isfinite(logits).all()
        ]
        faults += [f'{name}={float(loss):g}' for name, loss in self._losses.items() if not torch.isfinite(loss)]
        runner, model = self._runner, plain_model(self._runner)
        if gradients is not None and not faults:
            named = non_finite_parameters(model, gradients=True)
            faults += [f'gradients of {named}'] if named else []
        weights = non_finite_parameters(model, gradients=False)
        if weights:
            faults.append(f'weights of {weights}, already before this step')
        elif faults and self._inputs is not None and not is_distributed():
            layer = first_bad_layer(model, *self._inputs)
            faults += [f'the first layer with such an output is {layer}'] if layer else []
        images = describe_images(self._inputs)
        mine = (get_rank(), faults, images)
        seen = [entry for entry in all_gather_object(mine) if entry[1]] if is_distributed() else [mine]
        # gradients are those of all processes together: a process with a bad loss knows more
        informed = [entry for entry in seen if not entry[1][0].startswith('gradients')] or seen
        lines = [
            f'    {f"rank {rank}: " if is_distributed() else ""}{"; ".join(found) or "gradients"}\n    images: {names}'
            for rank, found, names in informed[:4]
        ]
        self._detach()
        text = '\n'.join(lines)
        where = f'iteration {runner.iter + 1} (epoch {runner.epoch + 1})'
        raise NonFiniteError(f'{where}: NaN or infinite values:\n{text}\n   {self._advice()}')

    def _advice(self) -> str:
        last = latest_checkpoint(self._runner.work_dir)
        saved = f'The last checkpoint is {last}; nothing was saved since' if last else 'No checkpoint was saved yet'
        return (
            f' {saved}. Usual causes: the learning rate (lower it, or lengthen the warm-up), '
            'missing gradient clipping (optim_wrapper.clip_grad), damaged annotations of these images '
            f'({command("check-data", "CONFIG")})'
        )

    # -- validation and test -----------------------------------------------------------------------------------

    def before_val(self, runner) -> None:
        """Watches the gates although nothing is trained."""
        self._watch(runner)

    def before_test(self, runner) -> None:
        """Watches the gates although nothing is trained."""
        self._watch(runner)

    def _watch(self, runner) -> None:
        self._runner = runner
        self._forget()
        if not self._handles:
            self._attach_gates(runner)

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Checks the gates of a validation batch.

        Raises:
            NonFiniteError: a gate logit is NaN or infinite.
        """
        self._check_evaluation(runner, batch_idx, outputs, 'validation')

    def after_test_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Checks the gates of a test batch.

        Raises:
            NonFiniteError: a gate logit is NaN or infinite.
        """
        self._check_evaluation(runner, batch_idx, outputs, 'test')

    def _check_evaluation(self, runner, batch_idx: int, outputs: object, what: str) -> None:
        logits, self._logits = self._logits, []
        self._checked = True
        if not logits or torch.stack([torch.isfinite(values).all() for _, values in logits]).all().item():
            return
        names = sorted({name for name, values in logits if not torch.isfinite(values).all()})
        weights = non_finite_parameters(plain_model(self._runner), gradients=False)
        raise NonFiniteError(
            f'{what}, batch {batch_idx + 1}: NaN or infinite gate logits of {", ".join(names)}; images: '
            f'{describe_images(((), {"data_samples": outputs}))}'
            + (f'; weights that are NaN or infinite: {weights}' if weights else '')
        )
