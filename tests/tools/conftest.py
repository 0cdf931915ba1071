"""The scripts of tools/, a tiny data set and config for them, and a place for what they write."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from small_files import TINY_CONFIG, write_tiny_coco

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.fixture(scope='session')
def tiny_coco(tmp_path_factory) -> Path:
    """The data set's folder; tests leave it as it is."""
    return write_tiny_coco(tmp_path_factory.mktemp('tiny_coco') / 'tiny')


@pytest.fixture
def tiny_config(tmp_path) -> Path:
    """A config whose data folder, data/tiny, does not exist: the data comes with --data-root."""
    path = tmp_path / 'tiny_retinanet.py'
    path.write_text(TINY_CONFIG)
    return path


@pytest.fixture
def tool():
    """Imports a script: ``tool('train.py').main([...])`` returns its exit status."""

    def load(name: str):
        path = TOOLS / name
        spec = importlib.util.spec_from_file_location(f'tools_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def fails(tool, capsys):
    """``fails('train.py', ...)`` is the one message of a script that ends with status 2."""

    def run(script: str, *arguments: object) -> str:
        capsys.readouterr()
        assert tool(script).main([str(item) for item in arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith('error: ') and err.count('error: ') == 1 and 'Traceback' not in err
        return err

    return run


@pytest.fixture
def size_report(tool, tmp_path):
    """``size_report(config, weights, small, large, ...)`` is what a short run of the size report finds."""

    def run(config: Path, weights: Path, *limits: int, options: tuple[str, ...] = ()) -> dict:
        few = ['--permutations', '500', '--bootstrap', '100', '--swaps', '2', '--resamples', '50', '--no-figures']
        where = ['--out-dir', str(tmp_path), '--device', 'cpu', '--area-ranges', *map(str, limits)]
        assert (
            tool('analysis_tools/size_specialization.py').main([str(config), str(weights), *where, *few, *options]) == 0
        )
        return json.loads((tmp_path / 'size_specialization.json').read_text())

    return run


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch) -> None:
    """The test's own folder is the current one."""
    monkeypatch.chdir(tmp_path)
