"""Where the data sets of a config lie: their kind, their folders and files, with errors that say what is there."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mmengine.config import Config

from ..called import command
from ..common.config_edit import is_remote, split_datasets, split_metrics
from ..common.console import near
from ..errors import DataError
from .images import Reading

_DEMO_CONFIG = 'shapes/retinanet_moe_soft'


def registered_class(dataset: dict) -> object:
    """Returns what a data set's ``type`` names; None for a name that nothing is registered under."""
    from mmdet.registry import DATASETS

    kind = dataset.get('type')
    return DATASETS.get(kind) if isinstance(kind, str) else kind


def dataset_class(dataset: dict) -> type | None:
    """Returns the data set's class if it is mmdet's CocoDataset or derived from it."""
    from mmdet.datasets import CocoDataset

    kind = registered_class(dataset)
    return kind if isinstance(kind, type) and issubclass(kind, CocoDataset) else None


def reads_plain_coco(kind: type) -> bool:
    """Tells whether a subclass reads the file as CocoDataset does; LVIS and others have formats of their own."""
    from mmdet.datasets import CocoDataset

    names = ('load_data_list', 'parse_data_info')
    return all(getattr(kind, name) is getattr(CocoDataset, name) for name in names)


def is_local(settings: dict) -> bool:
    backend = (settings.get('backend_args') or {}).get('backend', 'local')
    prefix = (settings.get('data_prefix') or {}).get('img')
    paths = (settings.get('data_root'), settings.get('ann_file'), prefix)
    return backend in ('local', 'disk') and not any(is_remote(path) for path in paths)


def check_paths(where: str, dataset: dict) -> tuple[str | None, str | None]:
    """Returns the image folder and the annotation file of a dataset, both of which exist; None where none is set."""
    root = dataset.get('data_root') or ''
    ann_file = dataset.get('ann_file') or ''
    prefix = (dataset.get('data_prefix') or {}).get('img')
    annotations = os.path.join(root, ann_file) if ann_file else None
    images = None if prefix is None else os.path.join(root, prefix)
    if root and not os.path.isdir(root) and not (os.path.isabs(ann_file) and os.path.isabs(prefix or '')):
        raise DataError(_missing_root(where, root, ann_file, prefix))
    if annotations and not os.path.isfile(annotations):
        raise DataError(missing_file(f'{where}.ann_file', annotations))
    if images and not os.path.isdir(images):
        folder, name = os.path.split(os.path.abspath(images))
        found = [item.name for item in os.scandir(folder) if item.is_dir()] if os.path.isdir(folder) else []
        held = f' {folder} holds {short(sorted(found))}.{near(name, found)}' if found else ''
        raise DataError(
            f"{where}.data_prefix['img']: the image folder {os.path.abspath(images)} does not exist.{held} Name the "
            "data set's folder with --data-root DIR"
        )
    return images, annotations


def _missing_root(where: str, root: str, ann_file: str, prefix: str | None) -> str:
    demo = os.path.basename(os.path.normpath(root)) == 'shapes'
    advice = (
        f'    make the synthetic data set there:  {command("make-shapes", root.rstrip("/"))}\n'
        if demo
        else f'    without COCO at hand, train the demo on synthetic data:  {command("make-shapes", "data/shapes")}\n'
        f'        and then  {command("train", _DEMO_CONFIG)}\n'
    )
    return (
        f'{where}: the data folder {os.path.abspath(root)} does not exist (data_root={root!r}, expected to hold '
        f'{" and ".join(item for item in (ann_file, prefix) if item)}).\n'
        f'    if the data set lies elsewhere, name its folder:  --data-root DIR\n{advice}'
    ).rstrip('\n')


def missing_file(where: str, path: str) -> str:
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return f'{where}: {path} is a folder, expected an annotation file in JSON'
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return f"{where}: {path} does not exist, nor does its folder. Name the data set's folder with --data-root DIR"
    names = sorted(name for name in os.listdir(folder) if name.endswith('.json'))
    held = f' The folder holds {short(names)}.{near(os.path.basename(path), names)}' if names else ''
    return f'{where}: the annotation file {path} does not exist.{held}'


def annotation_file(cfg: Config, split: str = 'test') -> str:
    """Returns the COCO annotation file that scores ``'val'`` or ``'test'``: the evaluator's, else the data set's.

    Raises:
        DataError: neither names a file of this machine.
    """
    named = [metric.get('ann_file') for _, metric in split_metrics(cfg, split)]
    for _, dataset in split_datasets(cfg, split):
        if dataset.get('ann_file'):
            named.append(os.path.join(dataset.get('data_root') or '', dataset['ann_file']))
    for path in named:
        if isinstance(path, str) and path and not is_remote(path) and os.path.isfile(path):
            return path
    raise DataError(
        f'{cfg.filename}: neither {split}_evaluator nor {split}_dataloader.dataset names a COCO annotation file that '
        f'exists ({", ".join(map(repr, named)) or "no ann_file"})'
    )


def reading_of(dataset: dict) -> Reading:
    """Returns how a data set's pipeline decodes its images."""
    for transform in dataset.get('pipeline') or ():
        name = transform.get('type') if isinstance(transform, dict) else None
        if str(getattr(name, '__name__', name)).rpartition('.')[2] == 'LoadImageFromFile':
            return Reading(transform.get('color_type', 'color'), transform.get('imdecode_backend', 'cv2'))
    return Reading()


def short(names: Sequence[str], limit: int = 12) -> str:
    """The first names of a list, and how many there are more."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(str(name) for name in names[:limit]) + more
