"""Hooks of mkdocs: pages from elsewhere in the repository, links that work here and on the forge, pages of the API.

The pages of docs/ are written for the forge: links are relative paths in the repository. Here a link to a page of the
site stays one, and a link to any other file leads to the repository, whose address is in pyproject.toml alone.
"""

from __future__ import annotations

import ast
import posixpath
import re
import textwrap
from pathlib import Path

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# pages of the site that are files outside docs/
COPIED = {
    'index.md': 'README.md',
    'configs.md': 'configs/README.md',
    'contributing.md': 'CONTRIBUTING.md',
    'changelog.md': 'CHANGELOG.md',
}
# packages whose exported names are the API
PACKAGES = ('routing', 'layers', 'models', 'detectors', 'analysis')

_LINK = re.compile(r'(\]\()(?!\w+:|#)([^)#\s]+)')
_ROLE = re.compile(r':\w+:`~?\.?([^`]+)`')
_SPREAD = re.compile(r'(?<=\d) ± (?=[\d.])|(?<=\d), (?=[-+−]?[\d.]+\])')
_LITERAL = re.compile(r'::\n\n((?:    .*(?:\n|$)|\n)+)')


def repository() -> str:
    """Address of the repository."""
    return re.search(r'^Repository = "(.+?)"', (ROOT / 'pyproject.toml').read_text(encoding='utf-8'), re.MULTILINE)[1]


def linked(text: str, source: str, pages: set[str]) -> str:
    """A page's text with links for the site.

    Args:
        text: of the page, with links relative to ``source``.
        source: path of the page in the repository.
        pages: paths of the site's own files below docs/.
    """
    of_source = {file: page for page, file in COPIED.items()}
    here = of_source.get(source, posixpath.relpath(source, 'docs'))

    def target(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        page = of_source.get(path, posixpath.relpath(path, 'docs'))
        if page in pages:
            return match[1] + posixpath.relpath(page, posixpath.dirname(here) or '.')
        return f'{match[1]}{repository()}/blob/HEAD/{path}' if (ROOT / path).exists() else match[0]

    return _LINK.sub(target, text)


def exported(package: str) -> list[str]:
    """The names in ``__all__`` of a package of moe_det, which is read and not imported."""
    for node in _parsed(package).body:
        if isinstance(node, ast.Assign) and [getattr(name, 'id', None) for name in node.targets] == ['__all__']:
            return ast.literal_eval(node.value)
    raise ValueError(f'moe_det.{package} has no __all__')


def api_page(package: str) -> str:
    """The page of a package: its summary and everything that it exports."""
    parts = [f'# moe_det.{package}', ast.get_docstring(_parsed(package))]
    return '\n\n'.join([*parts, *(f'::: moe_det.{package}.{name}' for name in exported(package))]) + '\n'


def _parsed(package: str) -> ast.Module:
    return ast.parse((ROOT / 'moe_det' / package / '__init__.py').read_text(encoding='utf-8'))


def on_config(config):
    """Shows the repository's address; as ``repo_url`` the theme would fetch its number of stars."""
    config.extra['social'] = [{'icon': 'fontawesome/brands/git-alt', 'link': repository(), 'name': 'Repository'}]
    return config


def on_files(files: Files, config) -> Files:
    """Adds the pages that are not below docs/."""
    for page, source in COPIED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding='utf-8')))
    for package in PACKAGES:
        files.append(File.generated(config, f'api/{package}.md', content=api_page(package)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Makes the links of a page fit the site, and keeps spreads and intervals in tables on one line."""
    source = COPIED.get(page.file.src_uri, f'docs/{page.file.src_uri}')
    lines = [
        _SPREAD.sub(lambda match: match[0].replace(' ', '\N{NO-BREAK SPACE}'), line) if line.startswith('|') else line
        for line in markdown.split('\n')
    ]
    return linked('\n'.join(lines), source, set(files.src_uris))


class PlainDocstrings(griffe.Extension):
    """Turns reStructuredText in docstrings, roles and literal blocks, into Markdown."""

    def on_class_members(self, *, node, cls: griffe.Class, agent, **kwargs) -> None:
        """Lets the constructor of a class without ``__init__`` be found."""
        if '__new__' in cls.members:
            cls.members.setdefault('__init__', cls.members['__new__'])

    def on_instance(self, *, node, obj: griffe.Object, agent, **kwargs) -> None:
        """Rewrites the docstring of an object that was read."""
        if obj.docstring:
            text = _ROLE.sub(lambda match: f'`{match[1].rpartition(".")[2]}`', obj.docstring.value)
            obj.docstring.value = _LITERAL.sub(
                lambda match: f':\n\n```python\n{textwrap.dedent(match[1]).strip()}\n```\n\n', text
            )
