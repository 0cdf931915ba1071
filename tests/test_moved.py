"""Old import paths work for one release, and say where things are now."""

from __future__ import annotations

import importlib
import sys

import pytest

MOVED = {
    'moe_det.engine.launch': 'moe_det.running.launch',
    'moe_det.engine.trained_model': 'moe_det.running.trained_model',
    'moe_det.analysis.figures': 'moe_det.figures',
    'moe_det.analysis.report': 'moe_det.report',
}


@pytest.mark.parametrize('old', MOVED)
def test_an_old_path_is_the_new_module_with_a_warning(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(FutureWarning, match=f'{old} is now {MOVED[old]};'):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
