"""Runs code in a fresh interpreter: what happens at import can only be seen there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess]:
    """Returns ``run(code, *folders)``: runs ``code`` with ``folders`` first on the path, on the stack under test."""

    def run(code: str, *folders: Path) -> subprocess.CompletedProcess:
        stack = os.environ.get('PYTHONPATH')
        path = [*map(str, folders), *([stack] if stack else []), str(REPOSITORY)]
        env = {**os.environ, 'PYTHONPATH': os.pathsep.join(path)}
        return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=300)

    return run
