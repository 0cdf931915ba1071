"""Files are whole or not there, whatever stops the writing."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from collections.abc import Callable

import pytest
from mmengine.fileio import get_file_backend

from moe_det.common import atomic_file
from moe_det.common.atomic_file import BACKEND, unfinished_files, write_atomically


def test_the_new_content_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / 'made' / 'file'
    write_atomically(path, b'old')
    write_atomically(path, 'new \u00e9')
    assert path.read_text(encoding='utf-8') == 'new \u00e9'
    assert [item.name for item in path.parent.iterdir()] == ['file']
    (tmp_path / 'plain').write_bytes(b'')
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / 'plain').stat().st_mode)


def test_the_content_is_synced_before_the_name_and_the_folder_after(tmp_path, monkeypatch):
    events = []
    for name in ('fsync', 'replace'):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, original=original: (events.append((name, args)), original(*args))[1]
        )
    folder = os.stat(tmp_path).st_ino

    def fsync(handle, original=os.fsync):
        events.append('folder' if os.fstat(handle).st_ino == folder else 'content')

    monkeypatch.setattr(os, 'fsync', fsync)
    write_atomically(tmp_path / 'file', b'x')
    assert [event if isinstance(event, str) else event[0] for event in events] == ['content', 'replace', 'folder']


@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / 'file'
    write_atomically(path, b'old')

    def fail(file, block):
        file.write(block[:1])
        raise error

    monkeypatch.setattr(atomic_file, '_write_block', fail)
    with pytest.raises(type(error)):
        write_atomically(path, b'new')
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['file']


def in_a_fork(work: Callable[[], int]) -> int:
    """The exit status of a forked process that does this; negative after a signal."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_a_real_limit_of_the_operating_system(tmp_path):
    """RLIMIT_FSIZE ends a write in the middle, as a full disk does: a short write, then an error."""
    (tmp_path / 'file').write_bytes(b'old')

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            write_atomically(tmp_path / 'file', bytes(20000))
        except OSError as error:
            return error.errno
        return 0

    assert in_a_fork(work) == errno.EFBIG
    assert (tmp_path / 'file').read_bytes() == b'old' and os.listdir(tmp_path) == ['file']


def test_a_kill_within_the_write(tmp_path):
    (tmp_path / 'file').write_bytes(b'old')

    def work() -> int:
        atomic_file._write_block = lambda file, block: (file.write(block[:3]), os.kill(os.getpid(), signal.SIGKILL))
        write_atomically(tmp_path / 'file', b'new content')
        return 0

    assert in_a_fork(work) == -signal.SIGKILL
    assert (tmp_path / 'file').read_bytes() == b'old'
    (left,) = unfinished_files(tmp_path)
    assert left.read_bytes() == b'new' and left.name.startswith('.file.')


def test_only_files_of_ours_count_as_unfinished(tmp_path):
    for name in ('.epoch_1.pth.12.unfinished', 'a.12.unfinished', '.b.unfinished', '.c.12.unfinishe', '.git'):
        (tmp_path / name).touch()
    assert [path.name for path in unfinished_files(tmp_path)] == ['.epoch_1.pth.12.unfinished']
    assert list(unfinished_files(tmp_path / 'absent')) == []


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / 'target').write_bytes(b'old')
    (tmp_path / 'link').symlink_to(tmp_path / 'target')
    write_atomically(tmp_path / 'link', b'new')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'target').read_bytes() == b'new'


def test_large_contents_arrive_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_file, 'BLOCK', 7)
    content = bytes(range(256))
    backend = get_file_backend(backend_args=dict(backend=BACKEND))
    backend.put(content, str(tmp_path / 'bytes'))
    backend.put_text('text', str(tmp_path / 'text'))
    assert backend.get(str(tmp_path / 'bytes')) == content and backend.get_text(str(tmp_path / 'text')) == 'text'
