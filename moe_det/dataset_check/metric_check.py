"""What a COCO metric makes of the data sets it is given: whether it can score them, and scores what it should."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from mmengine.config import Config

from ..common.config_edit import iter_datasets, split_datasets, split_metrics
from ..common.console import warn
from ..errors import DataError
from .coco_file import CocoFile
from .dataset_paths import is_local, missing_file

_SEVERAL = 'MultiDatasetsEvaluator'


@dataclass(frozen=True)
class Scored:
    """A data set that is scored: its config key, its config and its annotation file."""

    where: str
    dataset: dict
    file: CocoFile


def scores_with_coco(metric: Mapping) -> bool:
    """Tells whether a metric is mmdet's CocoMetric, or derived from it, and scores."""
    from mmdet.evaluation import CocoMetric
    from mmdet.registry import METRICS

    kind = metric.get('type')
    kind = METRICS.get(kind) if isinstance(kind, str) else kind
    return isinstance(kind, type) and issubclass(kind, CocoMetric) and not metric.get('format_only', False)


def check_metrics(
    cfg: Config, split: str, scored: Sequence[Scored], read: Callable[[str, str], CocoFile]
) -> list[tuple[str, CocoFile]]:
    """Checks that every metric of ``'val'`` or ``'test'`` can score the data sets that it is given.

    mmengine's evaluator gives every metric the results on all data sets; mmdet's ``MultiDatasetsEvaluator`` gives each
    metric those on one of the data sets of a ``ConcatDataset``.

    Args:
        cfg: the config.
        split: ``'val'`` or ``'test'``.
        scored: the data sets with COCO files of this machine.
        read: gives the annotation file of a config key and path.

    Returns:
        The annotation files of the metrics, with their config keys.

    Raises:
        DataError: a file does not exist, a metric's file lacks images of the data, images of several data sets would be
            mixed up, or two metrics would give results of one name.
    """
    metrics = split_metrics(cfg, split)
    everywhere = len(scored) == len(split_datasets(cfg, split))  # no data set is of another kind
    files = []
    for (where, metric), part in zip(metrics, _parts(cfg, split, metrics, scored), strict=True):
        path = metric.get('ann_file')
        for item in path if isinstance(path, (list, tuple)) else [path]:
            if isinstance(item, str) and item and is_local(dict(metric, ann_file=item)) and not os.path.isfile(item):
                raise DataError(missing_file(f'{where}.ann_file', item))
        if not scores_with_coco(metric):
            continue
        _check_mixing(where, part, cfg, split)
        file = None
        if isinstance(path, str) and path and is_local(dict(metric, ann_file=path)):
            file = read(f'{where}.ann_file', path)
            files.append((f'{where}.ann_file', file))
            if part and everywhere:
                _check_images(where, file, part, cfg, split)
        for scoring in [file] if file is not None else [item.file for item in part]:
            _check_classwise(where, metric, scoring)
    _check_names(cfg, split, metrics)
    return files


def _parts(cfg: Config, split: str, metrics: list, scored: Sequence[Scored]) -> list[list[Scored]]:
    """The data sets whose results each metric gets."""
    evaluator = cfg.get(f'{split}_evaluator')
    if not _splits(evaluator):
        return [list(scored)] * len(metrics)
    datasets = cfg[f'{split}_dataloader'].dataset.get('datasets') or []
    prefixes = evaluator.get('dataset_prefixes') or []
    if not len(datasets) == len(prefixes) == len(metrics):
        raise DataError(
            f'{split}_evaluator: {_SEVERAL} has {len(metrics)} metrics and {len(prefixes)} dataset_prefixes for '
            f'{len(datasets)} data sets of a ConcatDataset, expected one of each for every data set'
        )
    places = [{id(leaf) for _, leaf in iter_datasets(dataset, '')} for dataset in datasets]
    return [[item for item in scored if id(item.dataset) in place] for place in places]


def _splits(evaluator: object) -> bool:
    kind = evaluator.get('type') if isinstance(evaluator, Mapping) else None
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2] == _SEVERAL


def _ids(file: CocoFile) -> set[Hashable]:
    return {image.id for image in file.images if isinstance(image.id, Hashable)}


def _check_mixing(where: str, part: Sequence[Scored], cfg: Config, split: str) -> None:
    """Two images of one id in the data sets of one metric: their detections would be those of one image."""
    owners: dict[Hashable, Scored] = {}
    for item in part:
        for ident in _ids(item.file):
            other = owners.setdefault(ident, item)
            if other is not item:
                raise DataError(
                    f'{where}: the metric gets the results on {other.file.path} ({other.where}) and on '
                    f'{item.file.path} ({item.where}), which both have an image {ident!r}: their detections would be '
                    f'mixed up.{_one_each(cfg, split)}'
                )


def _check_images(where: str, file: CocoFile, part: Sequence[Scored], cfg: Config, split: str) -> None:
    known, seen = _ids(file), set()
    for item in part:
        ids = _ids(item.file)
        seen |= ids
        lost = ids - known
        if lost:
            raise DataError(
                f'{where}.ann_file: {file.path} lacks {len(lost):,} of {len(ids):,} images of {item.file.path} '
                f'({item.where}): the evaluation would fail after the epoch.{_one_each(cfg, split)}'
            )
    if known - seen:
        warn(
            f'{where}.ann_file: {file.path} is not the annotation file of the data set that is scored: it has '
            f'{len(known - seen):,} more images, whose objects count as missed'
        )
    elif all(os.path.realpath(file.path) != os.path.realpath(item.file.path) for item in part):
        warn(f'{where}.ann_file: {file.path} is not the annotation file of the data set that is scored')


def _one_each(cfg: Config, split: str) -> str:
    """The lines that give each of several data sets its own metric, where there are several."""
    dataset = cfg[f'{split}_dataloader'].dataset
    parts = dataset.get('datasets') or []
    if len(parts) < 2 or _splits(cfg.get(f'{split}_evaluator')):
        return ' Name the annotation file of the data set'
    lines = []
    for part in parts:
        leaf = next(iter_datasets(part, ''))[1]
        path = os.path.join(leaf.get('data_root') or '', leaf.get('ann_file') or '')
        lines.append(f"            dict(type='CocoMetric', metric='bbox', ann_file={path!r}),\n")
    prefixes = [f'set{number}' for number in range(1, len(parts) + 1)]
    return (
        ' Give each data set its own metric:\n'
        f"        {split}_evaluator = dict(_delete_=True, type='{_SEVERAL}', dataset_prefixes={prefixes}, metrics=[\n"
        f'{"".join(lines)}        ])'
    )


def _check_classwise(where: str, metric: Mapping, file: CocoFile) -> None:
    """mmdet's table of classes takes them in the order of the file, pycocotools in that of their ids."""
    ids = file.category_ids
    if metric.get('classwise') and (any(isinstance(ident, str) for ident in ids) or ids != sorted(ids)):
        raise DataError(
            f'{where}: classwise=True would give the classes the AP of other ones: the category ids of {file.path} are '
            f'not numbers in ascending order ({", ".join(map(repr, ids[:8]))}). Renumber them, or leave it out'
        )


def _check_names(cfg: Config, split: str, metrics: list[tuple[str, dict]]) -> None:
    """mmengine refuses two results of one name, after the whole evaluation."""
    evaluator = cfg.get(f'{split}_evaluator')
    prefixes = evaluator.get('dataset_prefixes') if _splits(evaluator) else None
    seen: dict[tuple, str] = {}
    for number, (where, metric) in enumerate(metrics):
        if not scores_with_coco(metric):
            continue
        kinds = metric.get('metric', 'bbox')
        for kind in kinds if isinstance(kinds, (list, tuple)) else [kinds]:
            name = (prefixes and prefixes[number], metric.get('prefix', 'coco'), kind)
            if name in seen:
                raise DataError(
                    f'{seen[name]} and {where} would give results of one name ({name[1]}/{kind}_mAP), which the '
                    "evaluation refuses at its end; give each a prefix of its own: prefix='name'"
                )
            seen[name] = where
