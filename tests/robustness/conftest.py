"""Runs that save often."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def quick_checkpoints(monkeypatch) -> None:
    """Hundreds of checkpoints: no sync (tested elsewhere), and no `git` and `gcc` started for each run."""
    monkeypatch.setattr(os, 'fsync', lambda handle: None)
    monkeypatch.setattr('mmengine.runner.runner.get_git_hash', lambda: '')
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
