"""The look at the data before anything is built: a wrong path or class list ends in one message, in seconds.

Only what makes a run fail or learn nothing is checked here. Remote storage (``s3://``, ``http://``, ``backend_args``)
and data sets of other kinds than mmdet's CocoDataset are left alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..errors import DataError
from .coco_file import CocoFile, read_coco
from .config_edit import is_remote, split_datasets, split_metrics
from .console import near, warn

_DEMO_DATA = 'python tools/misc/make_shapes.py data/shapes'
_DEMO_CONFIG = 'configs/shapes/retinanet_moe_soft.py'


def check_data(cfg: Config, splits: Sequence[str] = ('train', 'val')) -> None:
    """Checks that the folders and annotation files of ``splits`` exist, are COCO's, and share classes with the config.

    Every annotation file is parsed once, however many data sets and metrics name it.

    Args:
        cfg: the config of the run.
        splits: those of ``'train'``, ``'val'`` and ``'test'`` that the run reads.

    Raises:
        DataError: something is missing or damaged; names the path, the config key and what to do.
    """
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    files: dict[tuple[str, bool], CocoFile] = {}
    for split in splits:
        metrics = split_metrics(cfg, split)
        scored = split == 'train' or any(not metric.get('format_only', False) for _, metric in metrics)
        used = []
        for where, dataset in split_datasets(cfg, split):
            kind = _dataset_class(dataset)
            if kind is None or not _is_local(dataset):
                continue
            images, annotations = _check_paths(where, dataset)
            used.append(annotations)
            if annotations is None or not _reads_plain_coco(kind):
                continue
            key = (os.path.realpath(annotations), scored)
            if key not in files:
                files[key] = read_coco(annotations, annotations_required=scored)
            if split == 'train' and not files[key].num_annotations:
                raise DataError(f"{where}: {annotations}: the list 'annotations' is empty, there is nothing to learn")
            _check_images(where, images, files[key])
            _check_classes(where, dataset, kind, files[key], cfg)
        for where, metric in metrics:
            _check_metric(where, metric, used)


def _dataset_class(dataset: dict) -> type | None:
    """Returns the dataset's class if it is mmdet's CocoDataset or derived from it."""
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS

    kind = dataset.get('type')
    if isinstance(kind, str):
        kind = DATASETS.get(kind)
    return kind if isinstance(kind, type) and issubclass(kind, CocoDataset) else None


def _reads_plain_coco(kind: type) -> bool:
    """Tells whether a subclass reads the file as CocoDataset does; LVIS and others have formats of their own."""
    from mmdet.datasets import CocoDataset

    names = ('load_data_list', 'parse_data_info')
    return all(getattr(kind, name) is getattr(CocoDataset, name) for name in names)


def _is_local(settings: dict) -> bool:
    backend = (settings.get('backend_args') or {}).get('backend', 'local')
    prefix = (settings.get('data_prefix') or {}).get('img')
    paths = (settings.get('data_root'), settings.get('ann_file'), prefix)
    return backend in ('local', 'disk') and not any(is_remote(path) for path in paths)


def _check_paths(where: str, dataset: dict) -> tuple[str | None, str | None]:
    """Returns the image folder and the annotation file of a dataset, both of which exist; None where none is set."""
    root = dataset.get('data_root') or ''
    ann_file = dataset.get('ann_file') or ''
    prefix = (dataset.get('data_prefix') or {}).get('img')
    annotations = os.path.join(root, ann_file) if ann_file else None
    images = None if prefix is None else os.path.join(root, prefix)
    if root and not os.path.isdir(root) and not (os.path.isabs(ann_file) and os.path.isabs(prefix or '')):
        raise DataError(_missing_root(where, root, ann_file, prefix))
    if annotations and not os.path.isfile(annotations):
        raise DataError(_missing_file(f'{where}.ann_file', annotations))
    if images and not os.path.isdir(images):
        folder, name = os.path.split(os.path.abspath(images))
        found = [item.name for item in os.scandir(folder) if item.is_dir()] if os.path.isdir(folder) else []
        held = f' {folder} holds {_short(sorted(found))}.{near(name, found)}' if found else ''
        raise DataError(
            f"{where}.data_prefix['img']: the image folder {os.path.abspath(images)} does not exist.{held} Name the "
            "data set's folder with --data-root DIR"
        )
    return images, annotations


def _missing_root(where: str, root: str, ann_file: str, prefix: str | None) -> str:
    demo = os.path.basename(os.path.normpath(root)) == 'shapes'
    advice = (
        f'    make the synthetic data set there:  python tools/misc/make_shapes.py {root.rstrip("/")}\n'
        if demo
        else f'    without COCO at hand, train the demo on synthetic data:  {_DEMO_DATA}\n'
        f'        and then  python tools/train.py {_DEMO_CONFIG}\n'
    )
    return (
        f'{where}: the data folder {os.path.abspath(root)} does not exist (data_root={root!r}, expected to hold '
        f'{" and ".join(item for item in (ann_file, prefix) if item)}).\n'
        f'    if the data set lies elsewhere, name its folder:  --data-root DIR\n{advice}'
    ).rstrip('\n')


def _missing_file(where: str, path: str) -> str:
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return f'{where}: {path} is a folder, expected an annotation file in JSON'
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return f"{where}: {path} does not exist, nor does its folder. Name the data set's folder with --data-root DIR"
    names = sorted(name for name in os.listdir(folder) if name.endswith('.json'))
    held = f' The folder holds {_short(names)}.{near(os.path.basename(path), names)}' if names else ''
    return f'{where}: the annotation file {path} does not exist.{held}'


def _check_images(where: str, images: str | None, file: CocoFile) -> None:
    names = file.sample_files
    if images is not None and not any(os.path.exists(os.path.join(images, name)) for name in names):
        raise DataError(
            f'{where}: none of {len(names)} images of {file.path} that were looked for is in '
            f'{os.path.abspath(images)} (the first: {names[0]}); is it the folder of another split?'
        )


def _check_classes(where: str, dataset: dict, kind: type, file: CocoFile, cfg: Config) -> None:
    classes = (dataset.get('metainfo') or {}).get('classes', kind.METAINFO.get('classes'))
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise DataError(
                f"{where}.metainfo: classes={classes!r} is a text, expected a tuple: one class alone is ('name',)"
            )
        with open(classes, encoding='utf-8') as lines:
            classes = lines.read().splitlines()
    if classes is None:
        return
    common = [name for name in file.categories if name in set(classes)]
    if not common:
        names = ', '.join(repr(name) for name in file.categories[:8]) + (', ...' if len(file.categories) > 8 else ',')
        raise DataError(
            f'{where}: the config and the annotation file have no class in common.\n'
            f'    classes of the config: {_short(classes)}\n'
            f'    categories of {file.path}: {_short(file.categories)}\n'
            f'    set the classes in every dataset of the config:  metainfo=dict(classes=({names}))\n'
            f'    and their number in the model:  bbox_head=dict(num_classes={len(file.categories)})'
        )
    if len(common) < len(file.categories):
        ignored = [name for name in file.categories if name not in set(classes)]
        warn(
            f'{where}: {len(ignored)} of {len(file.categories)} categories of {file.path} are not among the classes of '
            f'the config and are ignored: {_short(ignored)}'
        )
    outputs = _num_classes(cfg)
    if outputs is not None and len(common) > outputs:
        raise DataError(
            f'{where}: {file.path} has {len(common)} of the classes of the config, but the model predicts '
            f'num_classes={outputs}; set bbox_head=dict(num_classes={len(classes)})'
        )


def _num_classes(cfg: Config) -> int | None:
    """Returns the number of classes of a single-stage model, None for models with other heads."""
    head = (cfg.get('model') or {}).get('bbox_head')
    number = head.get('num_classes') if isinstance(head, dict) else None
    return number if isinstance(number, int) else None


def _check_metric(where: str, metric: dict, used: list[str | None]) -> None:
    value = metric.get('ann_file')
    files = value if isinstance(value, (list, tuple)) else [value]
    for path in files:
        if not isinstance(path, str) or not path or not _is_local(dict(metric, ann_file=path)):
            continue
        if not os.path.isfile(path):
            raise DataError(_missing_file(f'{where}.ann_file', path))
        known = {os.path.realpath(item) for item in used if item}
        if known and os.path.realpath(path) not in known:
            warn(f'{where}.ann_file: {path} is not the annotation file of the data set that is scored')


def _short(names: Sequence[str], limit: int = 12) -> str:
    names = [str(name) for name in names]
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
