"""moe_det.routing is pure PyTorch: it must import without any package of mm*."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROUTING = Path(__file__).resolve().parents[2] / 'moe_det' / 'routing'
FILES = sorted(ROUTING.rglob('*.py'))
ALLOWED = {'torch', 'torchvision', 'numpy', *sys.stdlib_module_names}


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever the statement stands; relative ones as moe_det.*."""
    package = ['moe_det', *path.relative_to(ROUTING.parent).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            names.add('.'.join([*parents, *([node.module] if node.module else [])]))
    return names


def test_the_check_reads_this_package():
    assert len(FILES) > 10
    assert 'moe_det.errors' in imported(ROUTING / 'experts.py')
    assert 'moe_det.routing.gates' in imported(ROUTING / 'router.py')


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_imports(path):
    for name in imported(path):
        own = name == 'moe_det.errors' or name == 'moe_det.routing' or name.startswith('moe_det.routing.')
        assert own or name.split('.')[0] in ALLOWED, f'{path.name} imports {name}'
