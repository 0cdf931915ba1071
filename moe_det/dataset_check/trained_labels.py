"""The labels of a checkpoint, which lists the class names of its config and not the order of its training file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmengine.config import Config

from ..common.config_edit import split_datasets
from ..common.console import warn
from ..errors import DataError
from .coco_file import read_categories
from .dataset_paths import dataset_class, is_local, reads_plain_coco, short
from .label_repairs import config_lines, file_lines
from .labels import Labels, config_classes, label_name, moved_names

BY_LABEL = 'classes_by_label'  # in a checkpoint's dataset_meta: the classes are known to have the order of the labels


@dataclass(frozen=True)
class TrainedLabels:
    """The labels of a checkpoint.

    Attributes:
        names: the name of label 0, 1, ...
        path: the annotation file that says so; None where it is the checkpoint itself.
    """

    names: tuple[str, ...]
    path: str | None = None


def trained_labels(cfg: Config, content: Mapping) -> TrainedLabels | None:
    """Returns the labels of a checkpoint, None if it lists no classes.

    Checkpoints of training runs that compared labels first list the classes in the order of the labels. Others list
    them as their config did: if this config lists the same, it is taken to be that one, and the order of its training
    file counts, if the file is available.

    Args:
        cfg: the config that the checkpoint is used with.
        content: of the checkpoint, of mmdet 3 or 2.
    """
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    of_data = meta.get('dataset_meta')
    of_data = of_data[0] if isinstance(of_data, (list, tuple)) and of_data else of_data  # of data sets that differ
    found = {str(key).lower(): value for key, value in (of_data if isinstance(of_data, Mapping) else meta).items()}
    classes = found.get('classes')
    if not isinstance(classes, (list, tuple)) or not classes:
        return None
    classes = tuple(map(str, classes))
    of_file = None if found.get(BY_LABEL) else _by_training_file(cfg, classes)
    return of_file or TrainedLabels(classes)


def _by_training_file(cfg: Config, classes: tuple[str, ...]) -> TrainedLabels | None:
    for where, dataset in split_datasets(cfg, 'train'):
        kind = dataset_class(dataset)
        if kind is None or not is_local(dataset) or not reads_plain_coco(kind):
            continue
        path = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
        if not os.path.isfile(path) or classes != config_classes(where, dataset, kind):
            continue
        names = tuple(name for name in read_categories(path) if name in set(classes))
        if sorted(names) == sorted(classes):
            return TrainedLabels(names, path)
    return None


def check_trained_labels(
    files: Sequence[Labels], names: tuple[str, ...], trained: TrainedLabels, training: bool
) -> None:
    """Compares the labels of a checkpoint with those of the files.

    Args:
        files: of which the first is named.
        names: the name of label 0, 1, ... in the files.
        trained: the labels of the checkpoint.
        training: the weights are where a training starts; then a difference is a warning.

    Raises:
        DataError: a class has one label in the files and another in the checkpoint.
    """
    labels = files[0]
    if names == trained.names:
        if trained.path and labels.classes != names and not training:
            warn(
                f'the checkpoint lists its classes as the config does: it is taken to be trained on {trained.path} '
                'and to have labels in the order of that file'
            )
        return
    listed = [
        f'label {number}: {label_name(trained.names, number)} there, {label_name(names, number)} here'
        for number in range(max(len(names), len(trained.names)))
        if label_name(trained.names, number) != label_name(names, number)
    ]
    source = f' (on {trained.path})' if trained.path else ''
    if training:
        warn(f'the weights that training starts from had other labels{source} than {labels.path}: {short(listed, 3)}')
    elif len(names) == len(trained.names) and not moved_names(trained.names, names):
        warn(f'{labels.where}: the checkpoint names its classes otherwise than {labels.path}: {short(listed, 3)}')
    else:
        lines = ''.join(f'\n        {line}' for line in listed[:8])
        more = f'\n        and {len(listed) - 8} more' if len(listed) > 8 else ''
        raise DataError(
            f'{labels.where}: the checkpoint was trained with other labels{source} than {labels.path} gives:'
            f'{lines}{more}\n    give the file the categories of the checkpoint, in Python:\n'
            f'{file_lines(labels.path, labels.category_ids, trained.names)}{_hint(labels, trained)}'
        )


def _hint(labels: Labels, trained: TrainedLabels) -> str:
    if trained.path or labels.classes == trained.names:
        return ''
    return (
        '\n    or, if the checkpoint only lists its classes in the order of an older config, give the config that '
        f'order again, and the training file tells the labels:\n{config_lines(trained.names, None)}'
    )


def name_labels(datasets: Sequence[tuple[str, dict]], names: tuple[str, ...]) -> None:
    """Gives data sets' configs their classes in the order of the labels, so that checkpoints name them right.

    Args:
        datasets: config keys and configs, changed in place.
        names: the name of label 0, 1, ...
    """
    renamed = []
    for where, dataset in datasets:
        classes = config_classes(where, dataset, dataset_class(dataset))
        if classes is None or set(classes) != set(names):
            continue
        metainfo = dict(dataset.get('metainfo') or {}, classes=names, **{BY_LABEL: True})
        palette = metainfo.get('palette')
        if classes != names:
            renamed.append(where)
            if isinstance(palette, Sequence) and len(palette) == len(classes) and not isinstance(palette, str):
                metainfo['palette'] = [palette[classes.index(name)] for name in names]
        dataset['metainfo'] = metainfo
    if renamed:
        warn(
            f'{", ".join(renamed)}: labels count the categories in the order of the annotation file, not in that of '
            f'the config; the run names them so:  metainfo=dict(classes={names!r})'
        )
