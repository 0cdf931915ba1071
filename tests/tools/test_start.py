"""What all scripts share: the environment before torch, imports of a clone, errors, exit statuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
SCRIPTS = sorted(path for path in TOOLS.rglob('*.py') if path.name not in ('_start.py', 'torchrun.py'))


@pytest.fixture
def start(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import _start

    return _start


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_every_script_starts_with_it_and_has_no_start_of_its_own(script):
    text = script.read_text()
    assert 'import _start' in text or 'from _start import' in text
    assert 'find_spec' not in text and 'StackError' not in text
    parent = 'parents[1]' if script.parent != TOOLS else 'parent)'
    assert f'sys.path.append(str(Path(__file__).resolve().{parent}' in text


def test_exit_statuses(start, capsys):
    assert start.run(lambda: 3) == 3
    assert start.run(lambda: dict(answer=1)) == 0
    assert start.run(lambda: None) == 0
    assert start.run('os.path:isabs', s='/') == 1  # a function by name, with its arguments

    def wrong() -> None:
        from moe_det.errors import DataError

        raise DataError('no images in x')

    def interrupted() -> None:
        raise KeyboardInterrupt('go on with --resume')

    assert start.run(wrong) == 2
    assert capsys.readouterr().err == 'error: no images in x\n'
    assert start.run(interrupted) == 130
    with pytest.raises(ZeroDivisionError):
        start.run(lambda: 1 / 0)


def test_a_missing_stack_is_one_line(start, monkeypatch, capsys):
    class StackError(ImportError):
        pass

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name == 'moe_det.running.user_errors':
                raise StackError('neither mmdet is installed')

    monkeypatch.delitem(sys.modules, 'moe_det.running.user_errors', raising=False)
    monkeypatch.setattr(sys, 'meta_path', [Absent(), *sys.meta_path])
    assert start.run('os:getcwd') == 2
    assert capsys.readouterr().err == 'error: neither mmdet is installed\n'
    monkeypatch.setenv('MOE_DET_TRACEBACK', '1')
    with pytest.raises(StackError):
        start.run('os:getcwd')
