"""Errors end as one message with status 2 when the user can mend them, and keep their traceback when not."""

from __future__ import annotations

import zipfile
from urllib.error import URLError

import pytest
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope

from moe_det.common import checkpoints, console
from moe_det.errors import CheckpointError, DataError, MoEConfigError
from moe_det.running import user_errors
from moe_det.running.launch import run_main


def failing(error: BaseException):
    def main():
        raise error

    return main


def test_status_of_a_run_that_works():
    assert run_main(lambda: None) == 0
    assert run_main(lambda: 3) == 3


def test_the_packages_errors_are_one_message(capsys):
    assert run_main(failing(MoEConfigError('num_experts=0: expected at least 1'))) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ('', 'error: num_experts=0: expected at least 1\n')


def test_wrapped_errors_show_the_original_message(capsys):
    def chained():
        try:
            raise DataError('no images in x')
        except DataError as error:
            raise RuntimeError('class Dataset: building failed') from error

    def rewrapped():  # as mmengine's registries did: type(e)(f'... {e}')
        try:
            raise DataError('no images in x')
        except DataError as error:
            raise RuntimeError(f'class Dataset in file.py: {error}')  # noqa: B904

    def worker():
        raise DataError(
            'Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n'
            '  File "x.py", line 1, in f\n    raise DataError("a")\nmoe_det.errors.DataError: no images in x\n'
        )

    for main in (chained, rewrapped, worker):
        assert run_main(main) == 2
        assert capsys.readouterr().err == 'error: no images in x\n'


def test_bugs_keep_their_traceback(monkeypatch):
    def while_handling():
        try:
            raise DataError('no images in x')
        except DataError:
            raise ZeroDivisionError  # noqa: B904

    for main in (failing(ValueError('bug')), failing(KeyError('bug')), while_handling):
        with pytest.raises((ValueError, KeyError, ZeroDivisionError)):
            run_main(main)
    monkeypatch.setenv('MOE_DET_TRACEBACK', '1')
    with pytest.raises(DataError):
        run_main(failing(DataError('x')))


def test_ctrl_c(capsys):
    assert run_main(failing(KeyboardInterrupt('--resume continues.'))) == 130
    assert capsys.readouterr().err.strip() == 'interrupted. --resume continues.'


def test_config_names_and_keys_that_do_not_exist(capsys):
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert run_main(lambda: MODELS.build(dict(type='RetinaHaed'))) == 2
        assert "'RetinaHaed'" in (err := capsys.readouterr().err) and "'RetinaHead'" in err
        assert run_main(lambda: MODELS.build(dict(type='FPN', in_chanels=[1], out_channels=1, num_outs=1))) == 2
        assert "'in_chanels'" in (err := capsys.readouterr().err) and "'in_channels'" in err
        assert run_main(lambda: MODELS.build(dict(type='FPN', in_channels=[1], num_outs=1))) == 2
        assert "'out_channels'" in capsys.readouterr().err

        class Broken:
            def __init__(self):
                dict().get(default=1)

        with pytest.raises(TypeError):  # no key of the config: a bug in the class
            run_main(lambda: MODELS.build(dict(type=Broken)))


def test_no_network(capsys):
    assert run_main(failing(URLError('no route'))) == 2
    assert 'no route' in capsys.readouterr().err


def test_only_the_first_process_speaks_at_once(monkeypatch, capsys):
    pauses = []
    monkeypatch.setattr(user_errors.time, 'sleep', pauses.append)
    monkeypatch.setenv('RANK', '1')
    console.warn('x')
    console.say('y')
    assert capsys.readouterr() == ('', '')
    assert run_main(failing(DataError('no images'))) == 2
    assert pauses and 'error on rank 1: no images' in capsys.readouterr().err


def test_checkpoints_that_cannot_be_read(tmp_path):
    good = tmp_path / 'epoch_12.pth'
    with zipfile.ZipFile(good, 'w') as archive:
        archive.writestr('data.pkl', 'x' * 1000)
    assert checkpoints.check_checkpoint(str(good), 'here') == str(good)
    assert checkpoints.check_checkpoint('https://x/y.pth', 'here') == 'https://x/y.pth'
    assert checkpoints.check_checkpoint('torchvision://resnet50', 'here') == 'torchvision://resnet50'
    (tmp_path / 'empty.pth').touch()
    (tmp_path / 'cut.pth').write_bytes(good.read_bytes()[:-100])
    (tmp_path / 'page.pth').write_text('<html>')
    for name, word in (
        ('epoch_21.pth', "Did you mean 'epoch_12.pth'"),
        ('empty.pth', 'empty'),
        ('cut.pth', 'truncated'),
        ('page.pth', '<htm'),
        ('', 'is a folder'),
    ):
        with pytest.raises(CheckpointError, match=word):
            checkpoints.check_checkpoint(str(tmp_path / name), 'here')


def test_latest_checkpoint_survives_a_move_of_the_folder(tmp_path):
    assert checkpoints.latest_checkpoint(str(tmp_path)) is None
    (tmp_path / 'last_checkpoint').write_text('/gone/epoch_2.pth')
    assert checkpoints.latest_checkpoint(str(tmp_path)) is None
    (tmp_path / 'epoch_2.pth').touch()
    assert checkpoints.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_2.pth')
