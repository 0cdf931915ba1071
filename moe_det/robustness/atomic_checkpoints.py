"""mmengine's CheckpointHook made safe against kills and full disks, in place, in any config.

A subclass alone would serve only those who name it in ``default_hooks``; replacing mmengine's file backend for all
files would change programs that import moe_det for something else. So the run's own hook gets a class in front of its
own, and our backend for its local files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook

from ..common.atomic_file import BACKEND, write_atomically
from ..errors import CheckpointError

OUTDATED = 'outdated_ckpts'  # key of mmengine's message hub


def save_safely(hook: CheckpointHook, work_dir: str) -> None:
    """Makes a CheckpointHook, or an instance of a subclass of it, save safely; doing it again changes nothing.

    Files in a local folder are written by :func:`.atomic_file.write_atomically`. A backend that the config chose, or
    another storage (``s3://...``), keeps its own way of writing; the order of saving and deleting is safe there too.

    Args:
        hook: the hook of a run that has not begun yet.
        work_dir: the run's folder.
    """
    if isinstance(hook, _SafeSaving):
        return
    local = '://' not in str(hook.out_dir or work_dir)
    if local and hook.backend_args is None and hook.file_client_args is None:
        hook.backend_args = dict(backend=BACKEND)
    cls = type(hook)
    hook.__class__ = type(cls.__name__, (_SafeSaving, cls), {'__module__': cls.__module__, '__doc__': cls.__doc__})


class _KeepsFiles:
    """A file backend whose deletions wait."""

    def __init__(self, backend) -> None:
        self._backend = backend
        self.unwanted: list[str] = []

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.unwanted.append(path)

    rmtree = remove


class _SafeSaving(CheckpointHook):
    """What differs: first the new file, then the note of it, then the deletion of the outdated ones."""

    last_ckpt: str | None  # these two are CheckpointHook's
    file_backend: Any

    def before_train(self, runner) -> None:
        """Also deletes what a killed run did not get to delete."""
        super().before_train(runner)
        info = runner.message_hub.runtime_info
        if runner.iter == 0:
            return
        if self.last_ckpt is None and info.get('last_ckpt'):
            self.last_ckpt = self._in_out_dir(info['last_ckpt'])
        if is_main_process():
            # only once the checkpoint that made them outdated was read: that of this run
            self._delete(self._in_out_dir(name) for name in info.get(OUTDATED) or ())

    def _in_out_dir(self, path: str) -> str:
        return self.file_backend.join_path(self.out_dir, os.path.basename(path))

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        outdated = self._note_step(runner, step)
        waiting = self.file_backend.unwanted if isinstance(self.file_backend, _KeepsFiles) else []
        runner.message_hub.update_info(OUTDATED, [os.path.basename(path) for path in [*outdated, *waiting]])
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        settings = dict(save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler)
        with _readable_failure(self.last_ckpt):
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **settings,
                **self.args,
            )
        if not is_main_process():
            return
        note = os.path.join(runner.work_dir, 'last_checkpoint')
        with _readable_failure(note):
            write_atomically(note, str(self.last_ckpt))
        self._delete(path for path in outdated if path != self.last_ckpt)  # a filename_tmpl without a number

    def _note_step(self, runner, step: int) -> list[str]:
        """Counts the step among the kept ones and returns the files that are no longer among them."""
        if self.max_keep_ckpts <= 0 or (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            return []
        steps = [kept for kept in self.keep_ckpt_ids if kept != step] + [step]
        dropped, kept = steps[: -self.max_keep_ckpts], steps[-self.max_keep_ckpts :]
        self.keep_ckpt_ids.clear()
        self.keep_ckpt_ids.extend(kept)
        runner.message_hub.update_info('keep_ckpt_ids', kept)
        return [self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)) for old in dropped]

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if not self.save_best:
            return
        backend = self.file_backend
        self.file_backend = keeping = _KeepsFiles(backend)
        try:
            with _readable_failure(f'the best checkpoint in {self.out_dir}'):
                super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        best = [getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()]
        if is_main_process():
            self._delete(path for path in keeping.unwanted if path not in best)

    def _delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # DeepSpeed's checkpoints are folders
                self.file_backend.rmtree(path)


@contextmanager
def _readable_failure(path: str) -> Iterator[None]:
    """Turns an OSError of saving into one message."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f'{path}: cannot be saved: {error.strerror or error}. The checkpoints saved before are untouched: make '
            'room (or fix the disk) and run the same command with --resume'
        ) from error
