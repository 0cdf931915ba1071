"""The documentation site builds strictly, has every page, fetches nothing and links to what exists."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'))
REPOSITORY = re.search(r'^Repository = "(.+?)"', (ROOT / 'pyproject.toml').read_text(encoding='utf-8'), re.M)[1]
ADDRESS = re.compile(r'<(\w+)[^>]*? (?:href|src)="?([^" >]*)')


def _pages(entries: list) -> list[str]:
    """Pages of a part of the navigation: titles with a page, or with a list of them."""
    (values,) = zip(*(entry.values() for entry in entries), strict=True)
    return [page for value in values for page in ([value] if isinstance(value, str) else _pages(value))]


def test_every_page_is_in_the_navigation_once():
    pages = _pages(CONFIG['nav'])
    assert len(pages) == len(set(pages))
    own = {path.relative_to(ROOT / 'docs').as_posix() for path in (ROOT / 'docs').rglob('*.md')}
    assert own <= set(pages) and len(own) > 15


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    """The built site."""
    for package in ('mkdocs', 'material', 'mkdocstrings_handlers.python'):
        pytest.importorskip(package, reason=f'{package} is not installed: make docs')
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', folder]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
    )
    assert done.returncode == 0, done.stderr
    return folder


def _addresses(site: Path):
    """(file, tag, address) of everything that the site's pages name."""
    for file in sorted(site.rglob('*.html')):
        if file.name != '404.html':  # its links begin at the root of a server
            for tag, address in ADDRESS.findall(file.read_text(encoding='utf-8')):
                yield file, tag, address


def test_pages_fetch_nothing(site):
    addresses = {(tag, address) for _, tag, address in _addresses(site) if tag != 'a'}
    fetched = {(tag, address) for tag, address in addresses if '//' in address and not address.startswith('data:')}
    assert not fetched
    styles = [path.read_text(encoding='utf-8') for path in site.rglob('*.css')]
    assert styles and not any(re.search(r'@import|url\(["\']?(?:https?:)?//', style) for style in styles)


def test_links_lead_to_files_of_the_site_or_of_the_repository(site):
    inner, outer, broken = 0, set(), []
    for file, _, address in _addresses(site):
        path = address.partition('#')[0]
        if path.startswith(REPOSITORY):
            outer.add(path.removeprefix(f'{REPOSITORY}/blob/HEAD/'))
        elif path and not re.match(r'\w+:', path):
            inner += 1
            broken += [] if (file.parent / path).is_file() else [f'{file.relative_to(site)}: {address}']
    assert not broken and inner > 500
    outer.discard(REPOSITORY)
    assert {'CITATION.cff', 'benchmarks/records/planted_routers.md'} <= outer
    assert not [path for path in outer if not (ROOT / path).exists()]


@pytest.mark.parametrize('name', ['routing', 'layers', 'models', 'detectors', 'analysis'])
def test_api_has_everything_that_is_exported(site, name):
    page = (site / 'api' / f'{name}.html').read_text(encoding='utf-8')
    package = importlib.import_module(f'moe_det.{name}')
    assert [entry for entry in package.__all__ if f'id="moe_det.{name}.{entry}"' not in page] == []
    assert ':class:' not in page and ':func:' not in page and '::' not in re.sub(r'<[^>]*>', '', page)
