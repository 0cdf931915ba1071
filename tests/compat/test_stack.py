"""Every way in which the packages may not fit together ends in one error that says what to install."""

from __future__ import annotations

import sys

import pytest

from moe_det.compat import stack
from moe_det.errors import StackError


def last_error(result) -> str:
    """Returns the text of a failed interpreter's StackError, and checks that the import ended in it."""
    assert result.returncode == 1, result.stdout
    assert 'moe_det.errors.StackError: ' in result.stderr, result.stderr
    return result.stderr.rpartition('moe_det.errors.StackError: ')[2]


def test_no_mmdet_is_one_error_naming_both_distributions(run_python):
    code = """
import importlib.machinery
hidden = {'mmengine', 'mmcv', 'mmdet'}
original = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = staticmethod(
    lambda name, path=None, target=None: None if name.partition('.')[0] in hidden else original(name, path, target)
)
import moe_det.registry
"""
    error = last_error(run_python(code))
    assert error.startswith('mmengine, mmcv, mmdet not found')
    for text in ('onedl-mmdetection', 'pip install "moe-det[onedl]"', 'mmcv-lite', 'pip install "moe-det[openmmlab]"'):
        assert text in error


def test_unmatched_torchvision_is_one_error_naming_the_pair(run_python, tmp_path):
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / '__init__.py').write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    metadata = tmp_path / 'torchvision-0.99.1.dist-info'
    metadata.mkdir()
    (metadata / 'METADATA').write_text('Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.1\n')
    import torch

    error = last_error(run_python('import moe_det.registry', tmp_path))
    assert error.startswith(f'torch {torch.__version__} and torchvision 0.99.1 do not fit together: operator')
    assert f'"torchvision=={stack.matching_torchvision(torch.__version__)}.*"' in error


@pytest.mark.parametrize(
    'torch_version, expected',
    [('2.0.1', '0.15'), ('2.6.0+cu124', '0.21'), ('2.10.0', '0.25'), ('2.11.0.dev20260101', '0.26'), ('1.13.1', None)],
)
def test_matching_torchvision(torch_version, expected):
    assert stack.matching_torchvision(torch_version) == expected


def plant(folder, name: str, version: str, body: str = '') -> None:
    """Writes a package of one file and its version.py."""
    (folder / name).mkdir()
    (folder / name / 'version.py').write_text(f'__version__ = {version!r}\n')
    (folder / name / '__init__.py').write_text(f'from .version import __version__\n{body}\n')


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """An environment whose mmengine, mmcv and mmdet are what the test plants; returns the planting function."""
    for name in list(sys.modules):
        if name.partition('.')[0] in ('mmengine', 'mmcv', 'mmdet'):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])

    def plant_all(mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0', **bodies):
        for name, version in (('mmengine', mmengine), ('mmcv', mmcv), ('mmdet', mmdet)):
            plant(tmp_path, name, version, bodies.get(f'{name}_body', ''))
        # the part of mmengine that the check looks at
        (tmp_path / 'mmengine' / 'utils.py').write_text(bodies.get('utils_body', 'def is_installed():\n    pass\n'))
        stack.importlib.invalidate_caches()

    yield plant_all
    for name in list(sys.modules):
        if name.partition('.')[0] in ('mmengine', 'mmcv', 'mmdet'):
            del sys.modules[name]


@pytest.mark.parametrize('mmcv', ['2.1.0', '2.0.0rc4'])
def test_planted_stack_passes(planted, mmcv):
    planted(mmcv=mmcv)
    stack.check_packages()


@pytest.mark.parametrize(
    'versions',
    [
        dict(mmcv='1.7.2', mmdet='2.28.2'),
        dict(mmdet='2.28.2'),
        dict(mmengine='0.6.0'),
        dict(mmdet='unknown'),  # a version without a number
    ],
)
def test_older_packages_are_named(planted, versions):
    planted(**versions)
    with pytest.raises(StackError) as caught:
        stack.check_packages()
    named = ' and '.join(f'{name} {version}' for name, version in versions.items())
    assert str(caught.value).startswith(f'{named} found: too old')
    assert 'mmengine>=0.7.1, mmcv>=2.0, mmdet>=3.0' in str(caught.value)


def test_newer_packages_are_a_warning_only(planted):
    planted(mmdet='4.0.0')
    with pytest.warns(UserWarning, match='mmdet 4.0.0 is newer than any version tried'):
        stack.check_packages()


@pytest.mark.parametrize(
    ('packages', 'message'),
    [
        (
            dict(mmcv='2.3.6', mmdet_body="raise AssertionError('MMCV==2.3.6 is used but incompatible.')"),
            'mmdet refuses the installed packages .*mmcv 2.3.6, mmdet 3.3.0.*MMCV==2.3.6',
        ),
        (dict(mmcv_body="raise ImportError('libGL.so.1: cannot open shared object file')"), 'opencv-python-headless'),
        (
            dict(mmengine_body='import a_module_that_nobody_has'),
            "mmengine 0.10.7 cannot be imported: No module named 'a_module_that",
        ),
    ],
)
def test_packages_that_cannot_be_imported_are_explained(planted, packages, message):
    planted(**packages)
    with pytest.raises(StackError, match=message):
        stack.check_packages()


@pytest.mark.parametrize('present', [True, False])
def test_pkg_resources_is_asked_for_only_where_it_is_used_and_missing(planted, monkeypatch, present):
    planted(utils_body='def is_installed():\n    import pkg_resources\n')
    monkeypatch.delitem(sys.modules, 'pkg_resources', raising=False)
    find_spec = stack.importlib.util.find_spec
    monkeypatch.setattr(
        stack.importlib.util,
        'find_spec',
        lambda name: (find_spec('json') if present else None) if name == 'pkg_resources' else find_spec(name),
    )
    if present:
        stack.check_packages()
    else:
        with pytest.raises(StackError, match='setuptools<82'):
            stack.check_packages()


def test_version_that_cannot_be_read_is_no_obstacle(planted, tmp_path, monkeypatch):
    planted()
    (tmp_path / 'mmcv' / 'version.py').write_text('')
    (tmp_path / 'mmcv' / '__init__.py').write_text('')
    monkeypatch.setattr(stack, '_metadata_version', lambda name: None)
    stack.check_packages()
