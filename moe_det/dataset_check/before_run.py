"""Checks the data before anything is built: what would break a run or its labels ends in one message.

Annotation files are checked entry by entry, and the labels that they give are compared (:mod:`.labels`); of the images,
all are looked for and the headers of some are read. What mmdet copes with is counted in one warning. Of image
classification data the files are looked for. Remote storage (``s3://``, ``http://``, ``backend_args``) and data sets of
other kinds than mmdet's CocoDataset are left alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..called import command
from ..common.config_edit import split_datasets, split_metrics
from ..common.console import warn
from ..errors import DataError
from ..robustness.bad_images_hook import tolerated_images
from .coco_file import CocoFile, read_coco
from .dataset_paths import check_paths, dataset_class, is_local, reading_of, reads_plain_coco, registered_class
from .images import Reading, check_images, missing_files
from .labels import Labels, check_labels, config_classes
from .metric_check import Scored, check_metrics, scores_with_coco
from .report import BROKEN_IMAGE, Report
from .trained_labels import TrainedLabels, check_trained_labels, name_labels

HEADERS_READ = 256  # of each data set, spread over it; the command check-data reads all of them


class DataSets:
    """The data sets of a config with COCO files of this machine, split by split, and what they have in common.

    Args:
        cfg: the config.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.by_split: dict[str, list[Scored]] = {}
        self.complete: dict[str, bool] = {}  # whether a split has no other data sets

    def add(self, split: str, where: str, dataset: dict, file: CocoFile) -> None:
        """Adds a data set of ``split`` by its config key, config and annotation file."""
        self.by_split.setdefault(split, []).append(Scored(where, dataset, file))

    def compare(self, read, trained: TrainedLabels | None = None) -> None:
        """Compares labels and metrics; gives the config's data sets their classes in the order of the labels.

        Args:
            read: gives the annotation file of a config key and path.
            trained: the labels of the checkpoint, where there is one.

        Raises:
            DataError: something does not fit; names files and classes.
        """
        labels: list[Labels] = []
        of_metrics = {}
        for split, found in self.by_split.items():
            metrics = [] if split == 'train' else check_metrics(self.cfg, split, found, read)
            of_metrics[split] = [file for _, file in metrics]
            files = [(item, item.where, item.file) for item in found] + [(found[0], *metric) for metric in metrics]
            for item, where, file in files:
                own = self._labels(item, where, file, split)
                if own and all((own.path, own.classes) != (other.path, other.classes) for other in labels):
                    labels.append(own)
        names = check_labels(labels, self.cfg.get('model')) if labels else None
        for split, found in self.by_split.items():
            _check_objects(self.cfg, split, found, of_metrics[split], self.complete.get(split, True))
        if names is not None:
            if trained is not None:
                check_trained_labels(labels, names, trained, 'train' in self.by_split)
            name_labels([(item.where, item.dataset) for found in self.by_split.values() for item in found], names)

    @staticmethod
    def _labels(item: Scored, where: str, file: CocoFile, split: str) -> Labels | None:
        classes = config_classes(item.where, item.dataset, dataset_class(item.dataset))
        if classes is None:
            return None
        closed = not item.dataset.get('return_classes')
        categories, ids = tuple(file.categories), tuple(file.category_ids)
        return Labels(where, file.path, classes, categories, ids, split != 'train', closed)


def check_data(cfg: Config, splits: Sequence[str] = ('train', 'val'), trained: TrainedLabels | None = None) -> None:
    """Checks that the folders and annotation files of ``splits`` exist, are COCO's, and agree on the labels.

    Every annotation file is parsed once, however many data sets and metrics name it. Files whose entries are damaged,
    images that are missing, and images whose size is not the file's are errors; images that the run skips
    (:class:`.bad_images_hook.SkipBadImagesHook`) are warnings up to its limit. Where the config lists the classes in
    another order than the files, they get the order of the files, in place: it is that of the labels.

    Args:
        cfg: the config of the run.
        splits: those of ``'train'``, ``'val'`` and ``'test'`` that the run reads.
        trained: the labels of the checkpoint that is tested or that training starts from; None if there is none, or it
            does not say.

    Raises:
        DataError: something is missing, damaged or does not fit; names the path, the config key and what to do.
    """
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    files: dict[tuple[str, bool], CocoFile] = {}

    def read(where: str, path: str, annotations_required: bool = True) -> CocoFile:
        key = (os.path.realpath(path), annotations_required)
        if key not in files:
            files[key] = read_coco(path, annotations_required=annotations_required)
            _check_entries(where, files[key])
        return files[key]

    found = DataSets(cfg)
    for split in splits:
        scored = split == 'train' or any(
            not metric.get('format_only', False) for _, metric in split_metrics(cfg, split)
        )
        for where, dataset in split_datasets(cfg, split):
            kind = dataset_class(dataset)
            if kind is None:
                found.complete[split] = False
                check_files = getattr(registered_class(dataset), 'check_files', None)
                if check_files is not None:
                    check_files(where, dataset)
                continue
            if not is_local(dataset):
                found.complete[split] = False
                continue
            images, annotations = check_paths(where, dataset)
            if annotations is None or not reads_plain_coco(kind):
                found.complete[split] = False
                continue
            file = read(where, annotations, scored)
            found.add(split, where, dataset, file)
            if images is not None:
                _check_images(where, images, file, reading_of(dataset), tolerated_images(cfg, split))
            if split == 'train':
                _check_filter(where, dataset, file)
    found.compare(read, trained)


def _check_objects(
    cfg: Config, split: str, found: Sequence[Scored], of_metrics: Sequence[CocoFile], all_known: bool
) -> None:
    """Nothing to learn, or nothing to score, is an error: mmdet would train anyway, and report an AP of -1."""
    if split == 'train':
        groups = [[item.file for item in found]] if all_known else []
    else:
        groups = [[file] for file in of_metrics]
        if not groups and all_known and any(scores_with_coco(metric) for _, metric in split_metrics(cfg, split)):
            groups = [[item.file for item in found]]
    classes = {name for item in found for name in _classes(item)}
    purpose = 'there is nothing to learn' if split == 'train' else 'there is nothing to score, the AP would be -1'
    for group in groups:
        if group and not any(_objects(file, classes) for file in group):
            empty = all(not file.num_annotations for file in group)
            why = "the list 'annotations' is empty" if empty else 'no usable annotation is of a class of the config'
            crowds = '' if empty or not any(sum(file.crowds) for file in group) else ' and no crowd (iscrowd=1)'
            paths = ', '.join(file.path for file in group)
            raise DataError(f'{found[0].where if found else split}: {paths}: {why}{crowds}, {purpose}')


def _classes(item: Scored) -> Sequence[str]:
    return config_classes(item.where, item.dataset, dataset_class(item.dataset)) or item.file.categories


def _objects(file: CocoFile, classes: set[str]) -> int:
    counts = zip(file.categories, file.usable, file.crowds, strict=True)
    return sum(usable - crowds for name, usable, crowds in counts if name in classes)


def _all_of_them(file: CocoFile, images: str | None = None) -> str:
    return command('check-data', file.path, *([] if images is None else ['--images', images]))


def _check_entries(where: str, file: CocoFile) -> None:
    if file.report.kinds(errors=True):
        raise DataError(
            f'{where}: {file.path}: training would fail or learn something wrong:\n'
            + _indented(file.report)
            + f'\n    all of them:  {_all_of_them(file)}\n    to skip this check:  --no-data-check'
        )
    if file.report.kinds(errors=False):
        notes = '; '.join(line.partition(' [')[0] for line in file.report.lines(errors=False, examples=0))
        warn(f'{file.path}: {notes} ({_all_of_them(file)} lists them)')


def _indented(report: Report) -> str:
    return '\n'.join(f'    {line}' for line in report.lines(errors=True))


def _check_images(where: str, folder: str, file: CocoFile, reading: Reading, tolerated: int) -> None:
    """Looks for all images and reads some headers; ``tolerated`` images may be missing or damaged."""
    report = Report()
    names = [image.file_name for image in file.images]
    gone = set(missing_files(folder, names))
    if len(gone) == len(set(names)):
        raise DataError(
            f'{where}: none of {len(names)} images of {file.path} is in {os.path.abspath(folder)} (the first: '
            f'{names[0]!r}); is it the folder of another split?'
        )
    for image in file.images:
        if image.file_name in gone:
            report.add('missing_image', f'images[{image.index}]', 'no such file', image.id, image.file_name)
    present = [image for image in file.images if image.file_name not in gone]
    sample = present[:: -(-len(present) // HEADERS_READ)]
    check_images(folder, sample, report, reading=reading)
    errors = report.total(errors=True)
    if not errors:
        return
    text = (
        f'{where}: {folder}: {len(names):,} images were looked for, {len(sample):,} headers read:\n'
        f'{_indented(report)}\n    all of them:  {_all_of_them(file, folder)}'
    )
    if errors == sum(report.counts.get(kind, 0) for kind in BROKEN_IMAGE) and errors <= tolerated:
        warn(f'{text}\n    the run skips such images (SkipBadImagesHook, max_images={tolerated})')
    else:
        raise DataError(f'{text}\n    to skip this check:  --no-data-check')


def _check_filter(where: str, dataset: dict, file: CocoFile) -> None:
    """mmdet fails without a word when its filter leaves no image."""
    smallest = (dataset.get('filter_cfg') or {}).get('min_size', 0)
    largest = max((min(image.size) for image in file.images if image.size), default=0)
    if largest < smallest:
        raise DataError(
            f'{where}.filter_cfg: min_size={smallest} leaves no image of {file.path}, whose shorter sides have at most '
            f'{largest} pixels'
        )
