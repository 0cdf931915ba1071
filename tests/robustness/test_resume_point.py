"""Broken and foreign checkpoints are named, and the newest good one is found."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch

from moe_det.compat.checkpoint import refuse_unsafe_loading
from moe_det.errors import CheckpointError
from moe_det.robustness.resume_point import check_resumable, newest_resumable


def save(path: Path, iteration: int, **changes) -> Path:
    weights = dict(w=torch.full((4000,), float(iteration)))
    content = dict(meta=dict(epoch=0, iter=iteration), state_dict=weights, message_hub={}, optimizer={})
    torch.save({**content, **changes}, path)
    return path


def test_a_good_one_passes(tmp_path):
    path = str(save(tmp_path / 'iter_3.pth', 3))
    assert check_resumable(path, '--resume') == path
    assert check_resumable('https://x.org/a.pth', '--resume') == 'https://x.org/a.pth'


def flip(path: Path) -> None:
    """Changes a byte of the weights."""
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda item: item.file_size)
    content = bytearray(path.read_bytes())
    content[info.header_offset + 1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    'spoil, words',
    [
        (lambda path: path.write_bytes(b''), 'is empty'),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), 'is truncated'),
        (lambda path: path.write_bytes(b'PNG...'), 'no checkpoint'),
        (flip, 'is damaged: the checksum'),
        (lambda path: torch.save(dict(state_dict={}), path), 'meta, message_hub missing'),
        (lambda path: torch.save([1], path), 'meta, state_dict, message_hub missing'),
        (lambda path: save(path, 1, meta=dict(seed=3)), 'has no epoch and iter'),
        (lambda path: save(path, 1, more=Path('/')), r'could run code \(weights_only\)'),
        (lambda path: path.unlink(), 'does not exist'),
    ],
    ids=['empty', 'truncated', 'no checkpoint', 'flipped bit', 'weights', 'list', 'meta', 'objects', 'missing'],
)
def test_a_bad_one_is_named_and_passed_over(tmp_path, spoil, words):
    for iteration in (2, 10, 9):
        save(tmp_path / f'iter_{iteration}.pth', iteration)
    last = save(tmp_path / 'iter_11.pth', 11)
    save(tmp_path / 'best_map_iter_12.pth', 12)
    (tmp_path / 'last_checkpoint').write_text(str(last))
    assert newest_resumable(str(tmp_path), pytest.fail) == str(last)
    spoil(last)
    with pytest.raises(CheckpointError, match=f'--resume: .*iter_11.pth.*{words}'):
        check_resumable(str(last), '--resume')
    os.utime(tmp_path / 'iter_2.pth')  # the newest by its time, copied perhaps
    lines = []
    assert newest_resumable(str(tmp_path), lines.append) == str(tmp_path / 'iter_10.pth')
    assert 'going on from' in lines[-1] and 'iter_10.pth (iteration 10)' in lines[-1]
    assert words == 'does not exist' or 'iter_11.pth' in lines[0]


def test_a_note_that_is_missing_or_empty(tmp_path):
    assert newest_resumable(str(tmp_path), pytest.fail) is None
    save(tmp_path / 'epoch_1.pth', 5)
    for note in (None, '', '/elsewhere/epoch_9.pth'):
        if note is not None:
            (tmp_path / 'last_checkpoint').write_text(note)
        lines = []
        assert newest_resumable(str(tmp_path), lines.append) == str(tmp_path / 'epoch_1.pth')
        assert len(lines) == 1


def test_all_are_bad(tmp_path):
    for name in ('iter_1.pth', 'iter_2.pth'):
        (tmp_path / name).write_bytes(b'')
    with pytest.raises(CheckpointError, match='iter_1.pth, iter_2.pth'):
        newest_resumable(str(tmp_path), lambda line: None)


def test_objects_that_could_run_code_are_not_loaded_by_anybody(tmp_path, monkeypatch):
    """onedl-mmengine tries again without weights_only."""
    from mmengine.runner.checkpoint import _load_checkpoint

    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    ran = tmp_path / 'ran'

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    torch.save(dict(state_dict={}, bomb=Bomb()), tmp_path / 'bomb.pth')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    torch.load(tmp_path / 'bomb.pth', weights_only=False)
    assert ran.is_dir()  # the bomb works
    ran.rmdir()
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    refuse_unsafe_loading()
    with pytest.raises(Exception, match='[Ww]eights'):
        _load_checkpoint(str(tmp_path / 'bomb.pth'))
    assert not ran.exists()
