"""CheckpointHook made safe: order of saving and deleting, full disks, what a kill leaves."""

from __future__ import annotations

import errno
import itertools
import os

import pytest
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from small_runs import Kill, Killed, train, training

from moe_det.common.atomic_file import BACKEND
from moe_det.errors import CheckpointError
from moe_det.robustness import atomic_checkpoints
from moe_det.robustness.atomic_checkpoints import save_safely
from moe_det.robustness.resume_point import check_resumable

pytestmark = pytest.mark.usefixtures('quick_checkpoints')
EVERY = dict(by_epoch=False, interval=1)


def checkpoints(folder) -> set[str]:
    return {path.name for path in folder.glob('*.pth')}


def test_the_hook_of_a_config_is_made_safe_once_and_stays_what_it_is():
    class Mine(CheckpointHook):
        def extra(self) -> int:
            return 7

    for hook in (CheckpointHook(interval=2), Mine(interval=2)):
        save_safely(hook, 'work')
        cls = type(hook)
        save_safely(hook, 'work')
        assert type(hook) is cls and cls.__name__ in ('CheckpointHook', 'Mine') and hook.interval == 2
        assert hook.backend_args == dict(backend=BACKEND)
    assert hook.extra() == 7
    chosen = CheckpointHook(backend_args=dict(backend='local'))
    remote = CheckpointHook(out_dir='s3://bucket/runs')
    for hook in (chosen, remote):
        save_safely(hook, 'work')
    assert chosen.backend_args == dict(backend='local') and remote.backend_args is None


def test_the_kept_checkpoints_are_those_that_mmengine_keeps(tmp_path):
    for name, exact in (('plain', False), ('safe', True)):
        settings = dict(EVERY, max_keep_ckpts=2, save_best='value', rule='less')
        train(training(tmp_path / name, name, checkpoint=settings, exact=exact))
    assert checkpoints(tmp_path / 'plain') == checkpoints(tmp_path / 'safe') != set()
    assert {'iter_19.pth', 'iter_20.pth'} < checkpoints(tmp_path / 'safe')
    notes = [(tmp_path / name / 'last_checkpoint').read_text() for name in ('plain', 'safe')]
    assert [os.path.basename(note) for note in notes] == ['iter_20.pth'] * 2


def test_the_previous_checkpoint_is_there_until_the_next_one_is_whole(tmp_path, monkeypatch):
    """With one checkpoint kept, mmengine deletes it before it writes the next."""
    seen = []
    original = atomic_checkpoints.write_atomically

    def note(path, text):
        seen.append(checkpoints(tmp_path))
        original(path, text)

    monkeypatch.setattr(atomic_checkpoints, 'write_atomically', note)
    put = LocalBackend.put

    def writing(self, content, path):
        seen.append(checkpoints(tmp_path))
        put(self, content, path)

    monkeypatch.setattr('moe_det.common.atomic_file.AtomicLocalBackend.put', writing)
    train(training(tmp_path, 'a', Kill('after_train_iter', 2), checkpoint=dict(EVERY, max_keep_ckpts=1)))
    one, two, three = 'iter_1.pth', 'iter_2.pth', 'iter_3.pth'
    assert seen == [set(), {one}, {one}, {one, two}, {two}, {two, three}]
    assert checkpoints(tmp_path) == {three}


def test_the_best_checkpoint_is_replaced_after_the_next_one_is_whole(tmp_path, monkeypatch):
    values = iter([3.0, 2.0])
    monkeypatch.setattr('small_runs.Falling.compute_metrics', lambda self, results: dict(value=next(values)))
    seen = []
    put = LocalBackend.put

    def writing(self, content, path):
        if 'best' in os.path.basename(path):
            seen.append({name for name in checkpoints(tmp_path) if 'best' in name})
        put(self, content, path)

    monkeypatch.setattr('moe_det.common.atomic_file.AtomicLocalBackend.put', writing)
    runner = train(training(tmp_path, 'a', checkpoint=dict(interval=2, save_best='value', rule='less')))
    assert runner.iter == 20
    assert seen == [set(), {'best_value_epoch_2.pth'}]
    assert {name for name in checkpoints(tmp_path) if 'best' in name} == {'best_value_epoch_4.pth'}


def test_names_without_a_number(tmp_path, monkeypatch):
    """The new file has the name of the outdated one, and must stay."""
    settings = dict(interval=1, max_keep_ckpts=1, filename_tmpl='latest.pth', save_best='value', rule='greater')
    values = itertools.count()
    monkeypatch.setattr('small_runs.Falling.compute_metrics', lambda self, results: dict(value=next(values)))
    train(training(tmp_path, 'a', checkpoint=settings))
    assert checkpoints(tmp_path) == {'latest.pth', 'best_value_latest.pth'}
    assert check_resumable((tmp_path / 'last_checkpoint').read_text(), 'test')
    train(training(tmp_path / 'b', 'b', checkpoint=dict(interval=1, max_keep_ckpts=1, filename_tmpl='latest.pth')))
    assert checkpoints(tmp_path / 'b') == {'latest.pth'}


def test_what_a_kill_kept_from_deletion_is_deleted_later(tmp_path, monkeypatch):
    settings = dict(EVERY, max_keep_ckpts=2)

    def killed(self, paths):
        if list(paths):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(atomic_checkpoints._SafeSaving, '_delete', killed)
        train(training(tmp_path, 'a', checkpoint=settings))
    assert checkpoints(tmp_path) == {'iter_1.pth', 'iter_2.pth', 'iter_3.pth'}
    (tmp_path / '.iter_4.pth.77.unfinished').write_bytes(b'PK')
    train(training(tmp_path, 'b', Kill('before_train_iter', 3), checkpoint=settings, resume=True))
    assert checkpoints(tmp_path) == {'iter_2.pth', 'iter_3.pth'}
    assert not (tmp_path / '.iter_4.pth.77.unfinished').exists()


class FullDisk(LocalBackend):
    """Takes two files."""

    files = 0

    def put(self, content, path) -> None:
        type(self).files += 1
        if self.files > 2:
            raise OSError(errno.ENOSPC, 'No space left on device')
        super().put(content, path)


@pytest.mark.parametrize('chosen', [False, True], ids=['our backend', "the user's backend"])
def test_a_full_disk_is_one_message_and_the_old_checkpoints_stay(tmp_path, chosen):
    register_backend('full', FullDisk, force=True)
    FullDisk.files = 0
    settings = dict(EVERY, max_keep_ckpts=1, backend_args=dict(backend='full'))
    runner = training(tmp_path, 'a', checkpoint=settings)
    if not chosen:
        register_backend(BACKEND, FullDisk, force=True)
        runner = training(tmp_path, 'b', checkpoint=dict(EVERY, max_keep_ckpts=1))
    try:
        with pytest.raises(CheckpointError, match=r'iter_3.pth: cannot be saved: No space left.*--resume'):
            train(runner)
    finally:
        from moe_det.common.atomic_file import AtomicLocalBackend

        register_backend(BACKEND, AtomicLocalBackend, force=True)
    assert checkpoints(tmp_path) == {'iter_2.pth'}
    check_resumable(str(tmp_path / 'iter_2.pth'), 'test')
    rest = train(training(tmp_path, 'c', checkpoint=EVERY, resume=True))
    assert rest.iter == 20 and len(rest.model.seen) == 36
