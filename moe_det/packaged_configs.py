"""The configs that come with the package: their names, their files, and copies of them with their bases."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path

from .called import command
from .errors import MoEConfigError, unknown_name

PREFIX = 'moe_det::'


def config_folder() -> Path:
    """Returns the folder of the configs: in an installed package ``.mim/configs``, in a clone ``configs``."""
    package = Path(__file__).parent
    installed = package / '.mim' / 'configs'
    return installed if installed.is_dir() else package.parent / 'configs'


def config_names() -> list[str]:
    """Returns the names of all configs that can be run: paths below the folder, without ``.py``."""
    folder = config_folder()
    found = [path.relative_to(folder).with_suffix('') for path in folder.rglob('*.py')]
    names = [path.as_posix() for path in found if '_base_' not in path.parts]
    return sorted(names, key=lambda name: (name.count('/'), name))


def packaged_config(name: str) -> Path | None:
    """Returns the file of a config of the package, None where there is none of that name.

    Args:
        name: path below the folder of the configs, with or without ``.py`` and ``moe_det::``.
    """
    folder = config_folder()
    path = folder / f'{name.removeprefix(PREFIX).removesuffix(".py")}.py'
    inside = folder in Path(os.path.normpath(path)).parents
    return path if inside and path.is_file() else None


def config_title(path: Path) -> str:
    """Returns what the first comment of a config says, up to its first full stop."""
    words: list[str] = []
    for line in path.read_text(encoding='utf-8').splitlines():
        if not line.startswith('#'):
            break
        words.append(line.lstrip('# '))
    return ' '.join(words).split('. ')[0].rstrip('.:')


def copy_config(name: str, to: str | os.PathLike = '.') -> list[Path]:
    """Copies a config of the package with the bases that it needs of the package; bases in mmdet stay there.

    The files keep their places relative to each other. Files that are there already with the same content stay.

    Args:
        name: see :func:`packaged_config`.
        to: folder of the copies; made where it is missing.

    Returns:
        The copies, the config itself first.

    Raises:
        MoEConfigError: there is no such config, a file of another content is in the way, or nothing can be written.
    """
    entry = packaged_config(name)
    if entry is None:
        raise MoEConfigError(unknown_name('config', name, config_names(), command('configs', 'list')))
    files = _with_bases(entry)
    root = Path(os.path.commonpath([file.parent for file in files]))
    copies = [Path(to) / file.relative_to(root) for file in files]
    for file, copy in zip(files, copies, strict=True):
        if copy.exists() and not (copy.is_file() and copy.read_bytes() == file.read_bytes()):
            raise MoEConfigError(f'{copy}: is there already with other content; name another folder with --to DIR')
    try:
        for file, copy in zip(files, copies, strict=True):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    except OSError as error:
        raise MoEConfigError(f'--to {to}: cannot be written: {error.strerror}') from error
    return copies


def _with_bases(file: Path) -> list[Path]:
    """Returns a config and every file of its chain of bases, each once; those of other packages are left out."""
    files = [file]
    for base in _bases(file):
        if '::' not in base:
            path = Path(os.path.normpath(file.parent / base))
            files += [found for found in _with_bases(path) if found not in files]
    return files


def _bases(file: Path) -> list[str]:
    for statement in ast.parse(file.read_text(encoding='utf-8')).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], 'id', None) == '_base_':
            value = ast.literal_eval(statement.value)
            return [value] if isinstance(value, str) else list(value)
    return []
