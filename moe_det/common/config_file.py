"""Reading a config file and the changes that come from the command line."""

from __future__ import annotations

import argparse
import inspect
import os
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from ..errors import MoEConfigError, MoEDetError
from ..packaged_configs import PREFIX, config_names, packaged_config
from .console import near, warn

_SUFFIXES = ('.py', '.json', '.yaml', '.yml')

# top-level keys that something reads: the runner's arguments, and what mmengine and mmdet look up in the config
_READ_KEYS = frozenset(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} | {
    'activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval', 'find_unused_parameters',
    'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn', 'tta_model', 'tta_pipeline',
}  # fmt: skip


def find_config(path: str | os.PathLike) -> str:
    """Returns the path of a config file.

    Args:
        path: a file, the name of one of this package's configs (``retinanet_moe_soft``), or
            ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py`` for one that mmdet brings along.

    Raises:
        MoEConfigError: there is no such file; the message suggests files with a similar name.
    """
    text = os.path.expanduser(os.fspath(path))
    if text.startswith('mmdet::'):
        text = str(_mmdet_configs() / text.removeprefix('mmdet::'))
    file = Path(text)
    if not file.exists() and (own := packaged_config(text)) is not None:
        return str(own)
    if file.is_dir():
        names = sorted(item.name for item in file.iterdir() if item.suffix in _SUFFIXES)
        raise MoEConfigError(f'config {path!s} is a folder, expected a file{_listing("; it holds", names)}')
    if not file.is_file():
        raise MoEConfigError(f'config file {path!s} does not exist (looked for {file.absolute()}).{_near_files(file)}')
    if file.suffix not in _SUFFIXES:
        raise MoEConfigError(f'config file {path!s}: expected a name that ends in one of {", ".join(_SUFFIXES)}')
    return text


def _mmdet_configs() -> Path:
    import mmdet

    package = Path(mmdet.__file__).parent
    installed = package / '.mim' / 'configs'
    return installed if installed.is_dir() else package.parent / 'configs'  # an editable install has no .mim folder


def _near_files(file: Path) -> str:
    """Suggests files next to ``file``, configs of the package, or the nearest folder that exists."""
    folder = file.parent
    name = file.with_suffix('').as_posix().removeprefix('configs/').removeprefix(PREFIX)
    own = '' if file.is_absolute() else near(name, config_names())
    if own:
        own += ' (configs of the package)'
    if folder.is_dir():
        names = sorted(item.name for item in folder.iterdir() if item.suffix in _SUFFIXES)
        similar = near(file.name, names) or near(f'{file.name}.py', names)
        if similar or own:
            return f'{similar} ({folder.absolute()})' if similar else own
        if folder == Path('.'):  # whatever else lies there
            return " 'python -m moe_det configs list' shows those of the package."
        return _listing(f' {folder} holds', names)
    if own and not Path(file.parts[0]).exists():
        return own
    while not folder.is_dir():
        folder = folder.parent
    missing = file.parts[len(folder.parts)] if folder != Path('.') else file.parts[0]
    names = [item.name for item in folder.iterdir() if item.is_dir()]
    return f' There is no {missing!r} in {folder.absolute()}.{near(missing, names)}'


def _listing(text: str, names: list[str], limit: int = 8) -> str:
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return f'{text}: {", ".join(names[:limit])}{more}.' if names else ''


def read_config(path: str | os.PathLike) -> Config:
    """Reads a config file with its bases and imports its ``custom_imports``.

    Args:
        path: see :func:`find_config`.

    Raises:
        MoEConfigError: the file, or one of its bases, is missing or cannot be executed; names the file and the line.
    """
    file = find_config(path)
    try:
        cfg = Config.fromfile(file, import_custom_modules=False)
    except MoEDetError:
        raise
    except Exception as error:
        raise MoEConfigError(_config_fault(file, error)) from error
    imports = cfg.get('custom_imports')
    if imports:
        try:
            import_modules_from_strings(**imports)
        except ImportError as error:
            if isinstance(error, MoEDetError):
                raise
            cause = error.__cause__ or error.__context__ or error
            raise MoEConfigError(
                f'{file}: custom_imports={dict(imports)!r}: {cause}. Is the package installed, or its folder on '
                'PYTHONPATH?'
            ) from error
    return cfg


def _config_fault(file: str, error: Exception) -> str:
    """Says in which file of a config's chain of bases, and in which line, ``error`` happened."""
    line, reading = None, file
    for frame, number in traceback.walk_tb(error.__traceback__):
        code_file = frame.f_code.co_filename
        if os.path.splitext(code_file)[1] in _SUFFIXES and frame.f_code.co_name == '<module>':
            reading, line = code_file, number  # a statement of the config itself
        elif 'mmengine' in code_file and isinstance(frame.f_locals.get('filename'), str):
            reading, line = frame.f_locals['filename'], None  # mmengine, busy with this file of the chain
    if isinstance(error, SyntaxError):
        text = f': {error.text.strip()}' if error.text else ''
        return f'{reading}, line {error.lineno}: {error.msg}{text}'
    inside = '' if os.path.abspath(reading) == os.path.abspath(file) else f' (read through _base_ of {file})'
    where = reading if line is None else f'{reading}, line {line}'
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return f'{where}: {type(error).__name__}: {message}{inside}'


def parse_options(options: Mapping | Iterable[str] | None) -> dict:
    """Returns ``--cfg-options`` as a dict from dotted keys to values.

    Args:
        options: ``key=value`` texts in mmengine's notation, a dict that is taken as it is, or None.

    Raises:
        MoEConfigError: an entry is not ``key=value`` or has unbalanced brackets.
    """
    if options is None or isinstance(options, Mapping):
        return dict(options or {})
    parsed: dict = {}
    for option in options:
        key, equals, _ = option.partition('=')
        if not equals or not key.strip('. ') or any(not part for part in key.split('.')):
            raise MoEConfigError(f'--cfg-options: expected key=value, got {option!r}')
        namespace = argparse.Namespace(options=parsed)
        try:
            DictAction(['--cfg-options'], dest='options', nargs='+')(None, namespace, [option])
        except RecursionError as error:  # mmengine's reader never ends on a bracket that it does not know
            raise MoEConfigError(
                f'--cfg-options: cannot read the value of {option!r}: expected a number, a word, or a list such as '
                '"[1,2]"; name the keys of a dict one by one (a.b=1 a.c=2) or write a config file'
            ) from error
        except Exception as error:
            raise MoEConfigError(f'--cfg-options: cannot read the value of {option!r}: {error}') from error
        parsed = namespace.options
    return parsed


def merge_options(cfg: Config, options: Mapping | Iterable[str] | None) -> None:
    """Applies ``--cfg-options`` to ``cfg`` and warns about keys that will have no effect.

    Raises:
        MoEConfigError: an entry cannot be read, or does not fit the config (a key below a plain value, a list index
            that does not exist).
    """
    parsed = parse_options(options)
    for key in parsed:
        hint = _useless_option(cfg, key)
        if hint:
            warn(f'--cfg-options {key}: {hint}')
    try:
        cfg.merge_from_dict(parsed)
    except Exception as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        given = ' '.join(f'{key}={value!r}' for key, value in parsed.items())
        raise MoEConfigError(f'--cfg-options {given}: does not fit the config: {message}') from error


def _useless_option(cfg: Config, key: str) -> str | None:
    """Says why setting the dotted ``key`` probably does nothing, or None where it has a place in the config."""
    first, *rest = key.split('.')
    if first not in _READ_KEYS:
        if first not in cfg:
            return f'no such key in the config, and nothing reads it.{near(first, _READ_KEYS | set(cfg.keys()))}'
        return (
            f'{first!r} is a variable of the config file: what was computed from it does not change, set the keys '
            f'that use it{" (or give --data-root)" if first == "data_root" else ""}.'
        )
    node, path = cfg, ''
    for part in [first, *rest][:-1]:
        if isinstance(node, (list, tuple)):
            if not part.isdigit():
                return f'{path} is a list: expected an index, got {part!r}.'
            if int(part) >= len(node):
                return None  # merging refuses it, with the list's length
            node = node[int(part)]
        elif isinstance(node, (dict, Config)):
            if node.get(part) is None:
                # top-level keys such as randomness exist without being written
                return None if node is cfg else f'the config has no {part!r} in {path}.{near(part, node.keys())}'
            node = node[part]
        else:
            return None
        path = f'{path}.{part}'.lstrip('.')
    return None
