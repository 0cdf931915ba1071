"""Shared by all tests: the stack in pytest's header, and the folder of real data."""

from __future__ import annotations

import gc
import importlib
import os
import platform
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

# importing moe_det comes before any test imports mmcv.ops or mmdet.models, which may need its operators
from moe_det.compat.ops import ops_source

# isort: split
from mmdet.visualization import DetLocalVisualizer

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_report_header() -> list[str]:
    """Names the packages under test, so that a log tells which of the two stacks it is from."""
    names = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet')
    versions = [f'{name} {importlib.import_module(name).__version__}' for name in names]
    source = "mmcv's compiled ones" if ops_source() == 'compiled' else "torchvision's"
    return [f'stack: python {platform.python_version()}, {", ".join(versions)}', f'operators: {source}']


def pytest_collection_finish() -> None:
    """Full runs of the garbage collector pass over what was imported: half a second each, 5 % of the time of tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """The folder of real data: $MOE_DET_DATA, or shared/data beside the repository; skips the test without it."""
    folder = Path(os.environ.get('MOE_DET_DATA') or REPOSITORY.parent / 'shared' / 'data')
    if not folder.is_dir():
        pytest.skip(f'real data not found: {folder} (set MOE_DET_DATA to its folder)')
    return folder


@pytest.fixture(autouse=True)
def no_trace_of_runners():
    """Takes back what a Runner leaves in the process: a default scope above all, which changes later look-ups."""
    # the visualizers too: runners that tests build themselves have one name within one second
    managers = (DefaultScope, MessageHub, MMLogger, Visualizer, DetLocalVisualizer)
    before = [dict(manager._instance_dict) for manager in managers]
    yield
    for manager, instances in zip(managers, before, strict=True):
        manager._instance_dict.clear()
        manager._instance_dict.update(instances)


@pytest.fixture
def weights_only_enforced(monkeypatch):
    """Makes any load without ``weights_only`` safe and any load that switches it off an error; counts the loads."""
    loads = []
    original = torch.load

    def load(*args, **kwargs):
        assert kwargs.get('weights_only') is not False, 'somebody switched weights_only off'
        kwargs['weights_only'] = True
        loads.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, 'load', load)
    return loads


@pytest.fixture
def quick_checkpoints(monkeypatch) -> None:
    """Hundreds of checkpoints: no sync (tested elsewhere), and no `git` and `gcc` started for each run."""
    monkeypatch.setattr(os, 'fsync', lambda handle: None)
    monkeypatch.setattr('mmengine.runner.runner.get_git_hash', lambda: '')
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
