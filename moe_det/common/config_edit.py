"""Changes to a loaded config: another data folder, another seed, a learning rate for another batch size."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mmengine.config import Config

from ..errors import MoEConfigError
from .console import warn

SPLITS = ('train', 'val', 'test')


def iter_datasets(dataset: object, where: str) -> Iterator[tuple[str, dict]]:
    """Yields the innermost dataset configs of a wrapper (``dataset=``) or concatenation (``datasets=``).

    Args:
        dataset: a ``dataset`` entry of a data loader, or anything else (yields nothing).
        where: its dotted key.

    Yields:
        tuple[str, dict]: the dotted key of an innermost dataset, and that dataset's config itself.
    """
    yield from _iter_leaves(dataset, where, ('dataset', 'datasets'))


def iter_metrics(evaluator: object, where: str) -> Iterator[tuple[str, dict]]:
    """Yields the metric configs of an evaluator: one, a list of them, or an evaluator class with ``metrics=``."""
    yield from _iter_leaves(evaluator, where, ('metrics',))


def _iter_leaves(node: object, where: str, inner: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _iter_leaves(item, f'{where}[{index}]', inner)
    elif isinstance(node, dict):
        keys = [key for key in inner if key in node]
        for key in keys:
            yield from _iter_leaves(node[key], f'{where}.{key}', inner)
        if not keys:
            yield where, node


def split_datasets(cfg: Config, split: str) -> list[tuple[str, dict]]:
    """Returns the innermost dataset configs of ``'train'``, ``'val'`` or ``'test'`` with their dotted keys."""
    loader = cfg.get(f'{split}_dataloader')
    if not isinstance(loader, dict):
        return []
    return list(iter_datasets(loader.get('dataset'), f'{split}_dataloader.dataset'))


def split_metrics(cfg: Config, split: str) -> list[tuple[str, dict]]:
    """Returns the metric configs of ``'val'`` or ``'test'`` with their dotted keys."""
    return list(iter_metrics(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'))


def is_remote(path: object) -> bool:
    """Tells whether ``path`` names a storage backend (``s3://``, ``http://``) and no file of this machine."""
    return isinstance(path, str) and '://' in path


def _absolute(path: str) -> str:
    return path.rstrip('/') if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def path_below(path: str, root: str) -> str | None:
    """Returns ``path`` relative to ``root`` (``''`` for the root itself), or None if it does not lie below it.

    Both may be absolute, relative to the current folder, or URLs; a trailing slash of ``path`` is kept.
    """
    inner, outer = _absolute(path), _absolute(root)
    if inner == outer:
        return ''
    outer = outer.rstrip('/') + '/'
    if not inner.startswith(outer):
        return None
    return inner[len(outer) :] + ('/' if path.endswith('/') else '')


def _paths(dataset: dict) -> list[str]:
    prefixes = dataset.get('data_prefix') or {}
    values = [dataset.get('ann_file'), *(prefixes.values() if isinstance(prefixes, dict) else ())]
    return [value for value in values if isinstance(value, str) and value]


def _declared_root(dataset: dict, cfg: Config) -> str:
    """Returns the folder a dataset's paths are meant to lie in; '' is the current folder."""
    if dataset.get('data_root'):
        return dataset['data_root']
    paths = _paths(dataset)
    shared = cfg.get('data_root')
    if shared and any(path_below(path, shared) is not None for path in paths):
        return shared
    if not paths or not dataset.get('ann_file'):
        return ''
    folders = [os.path.dirname(path) if path == dataset['ann_file'] else path for path in paths]
    try:
        return os.path.commonpath(folders)  # data/coco of data/coco/annotations and data/coco/train2017
    except ValueError:  # absolute and relative paths in one dataset
        return ''


def set_data_root(cfg: Config, data_root: str | os.PathLike) -> None:
    """Moves every dataset and every annotation file of ``cfg`` to another folder, in place.

    A dataset's ``data_root`` becomes the new folder, its own paths stay relative to it, and a path that is written out
    with the old folder is re-rooted; so are the metrics' annotation files. Data sets that lie in different folders
    keep their places relative to the folder that holds them all.

    Args:
        cfg: any mmdet config; wrappers and concatenations of data sets are followed.
        data_root: the new folder, taken relative to the current folder as the config's paths are.

    Raises:
        MoEConfigError: the data sets lie in folders that have nothing in common, or no data set has a folder.
    """
    new = os.fspath(data_root)
    leaves = {id(leaf): (where, leaf) for split in SPLITS for where, leaf in split_datasets(cfg, split)}
    leaves = {key: item for key, item in leaves.items() if _paths(item[1]) or 'data_root' in item[1]}
    if not leaves:
        raise MoEConfigError(f'--data-root {new}: no dataset of {cfg.filename} has a data_root or an ann_file to move')
    roots = {key: _declared_root(leaf, cfg) for key, (_, leaf) in leaves.items()}
    moved = _moved_roots(set(roots.values()), new)

    relative_files = []
    for key, (where, leaf) in leaves.items():
        _move_dataset(leaf, where, roots[key], moved[roots[key]])
        if isinstance(leaf.get('ann_file'), str):
            relative_files.append((leaf['ann_file'], leaf['data_root']))
    if cfg.get('data_root'):
        moved.setdefault(cfg.data_root, new)
        cfg.data_root = new
    metrics = {id(metric): (where, metric) for split in SPLITS for where, metric in split_metrics(cfg, split)}
    for where, metric in metrics.values():
        for kind in ('ann_file', 'seg_prefix'):
            value = metric.get(kind)
            if isinstance(value, (list, tuple)):
                metric[kind] = [_move_metric_path(item, f'{where}.{kind}', moved, relative_files) for item in value]
            elif value:
                metric[kind] = _move_metric_path(value, f'{where}.{kind}', moved, relative_files)


def _moved_roots(roots: set[str], new: str) -> dict[str, str]:
    """Maps each old root to its new place: ``new`` itself, or below it where a config reads from several folders."""
    absolute = {root: _absolute(root) for root in roots}
    if len(set(absolute.values())) == 1:
        return dict.fromkeys(roots, new)
    try:
        base = os.path.commonpath(list(absolute.values()))
    except ValueError:
        base = os.sep
    if base in (os.sep, '') or any(is_remote(root) for root in roots):
        listed = ', '.join(sorted(repr(root) for root in roots))
        raise MoEConfigError(
            f'--data-root {new}: the data sets lie in folders that have nothing in common ({listed}); set each with '
            '--cfg-options train_dataloader.dataset.data_root=... and so on'
        )
    return {root: os.path.normpath(os.path.join(new, os.path.relpath(path, base))) for root, path in absolute.items()}


def _move_dataset(dataset: dict, where: str, old: str, new: str) -> None:
    had_root = bool(dataset.get('data_root'))

    def move(path: object, key: str) -> object:
        if not isinstance(path, str) or not path:
            return path
        rest = path_below(path, old)
        if rest is not None:
            return rest
        if os.path.isabs(path) or is_remote(path) or not had_root:
            warn(f'--data-root: {where}.{key}={path!r} does not lie in {old!r} and stays where it is')
            return path if is_remote(path) else os.path.abspath(path)
        return path  # already relative to the root

    for key in ('ann_file', 'proposal_file'):
        if dataset.get(key):
            dataset[key] = move(dataset[key], key)
    prefixes = dataset.get('data_prefix')
    if isinstance(prefixes, dict):
        for key in list(prefixes):
            prefixes[key] = move(prefixes[key], f'data_prefix.{key}')
    dataset['data_root'] = new


def _move_metric_path(path: object, where: str, moved: dict[str, str], files: list[tuple[str, str]]) -> object:
    """Returns a metric's path after the move; ``files`` holds the data sets' (ann_file, new data_root)."""
    if not isinstance(path, str):
        return path
    for old in sorted(moved, key=lambda root: -len(_absolute(root))):
        rest = path_below(path, old)
        if rest is not None:
            return os.path.join(moved[old], rest)
    for ann_file, new in files:
        if not os.path.isabs(ann_file) and (path == ann_file or path.endswith(f'/{ann_file}')):
            return os.path.join(new, ann_file)
    warn(f'--data-root: {where}={path!r} belongs to no dataset of the config and stays where it is')
    return path


def set_seed(cfg: Config, seed: int) -> None:
    """Sets the seed of Python, NumPy and PyTorch; other entries of ``randomness`` stay."""
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)


def enable_auto_scale_lr(cfg: Config) -> None:
    """Switches on the linear scaling of the learning rate with the batch size.

    Raises:
        MoEConfigError: the config does not say for which batch size its learning rate was chosen.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise MoEConfigError(
            f'--auto-scale-lr: {cfg.filename} does not say for which batch size its learning rate is meant; add '
            'auto_scale_lr = dict(base_batch_size=16)'
        )
    cfg.auto_scale_lr.enable = True
