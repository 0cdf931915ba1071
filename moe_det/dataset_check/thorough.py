"""The function behind the command check-data: a whole data set, file by file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..common.config_edit import SPLITS, set_data_root, split_datasets
from ..common.config_file import merge_options, read_config
from ..common.console import say, warn, write_result
from ..common.software import cores
from ..errors import DataError, MoEConfigError
from .before_run import DataSets
from .coco_file import CocoFile, read_coco
from .dataset_paths import check_paths, dataset_class, is_local, reading_of, reads_plain_coco
from .images import Reading, check_images
from .report import Report

CLEAN, PROBLEMS = 0, 1


@dataclass
class _Checked:
    """An annotation file with the folder of its images, and what was found there."""

    annotations: str
    images: str | None
    annotations_required: bool = True
    reading: Reading = field(default_factory=Reading)
    report: Report = field(default_factory=Report)
    summary: str = ''
    file: CocoFile | None = None  # where its entries have no errors
    used: list[tuple[str, str, dict]] = field(default_factory=list)  # split, config key, config

    def as_dict(self) -> dict:
        return {
            'annotations': self.annotations,
            'images': self.images,
            'errors': self.report.total(errors=True),
            'notes': self.report.total(errors=False),
            'problems': self.report.as_list(),
        }


def check_dataset(
    source: str,
    *,
    images: str | None = None,
    data_root: str | None = None,
    cfg_options: list[str] | None = None,
    decode: bool = False,
    workers: int | None = 0,
    strict: bool = False,
    examples: int = 3,
    json_file: str | None = None,
) -> int:
    """Checks the data sets of a config, or one annotation file, and prints what is wrong with them.

    Args:
        source: a config (see :func:`.config_file.find_config`), or an annotation file, whose name ends in ``.json``.
        images: folder of an annotation file's images; without it they are not looked at.
        data_root: see :func:`.launch.load_config`; for an annotation file, the folder that it and ``images`` lie in.
        cfg_options: ``key=value`` changes of the config.
        decode: decode every image; else headers, and what looks suspicious.
        workers: processes for the images; one per core, at most eight, when None.
        strict: notes count as problems too.
        examples: entries printed of each kind.
        json_file: file for the full report.

    Returns:
        int: 0 if there is no error, 1 if there are.

    Raises:
        MoEDetError: the config cannot be read, a path does not exist, or the report cannot be written.
    """
    if source.endswith('.json'):
        cfg, targets = None, [_one_file(source, images, data_root)]
        if cfg_options:
            raise MoEConfigError(f'--cfg-options: {source} is an annotation file; options are for a config')
    else:
        if images is not None:
            raise MoEConfigError(f'--images {images}: {source} is a config, which names its own folders')
        cfg = _config(source, data_root, cfg_options)
        targets = _of_config(source, cfg)
    for target in targets:
        _check(target, None if json_file else max(examples, 1), decode, min(cores(), 8) if workers is None else workers)
        _print(target, examples)
    problem = None if cfg is None else _compare(cfg, targets)
    if problem is not None:
        say(f'the data sets together:\n  error: {problem}')
    errors = sum(target.report.total(errors=True) for target in targets) + (problem is not None)
    notes = sum(target.report.total(errors=False) for target in targets)
    if json_file:
        files = [target.as_dict() for target in targets]
        write_result('--json', json_file, {'errors': errors, 'notes': notes, 'together': problem, 'files': files})
        say(f'Full report: {json_file}')
    say(f'{errors:,} errors (training would fail or learn something wrong), {notes:,} notes (mmdet copes with them)')
    return PROBLEMS if errors or (strict and notes) else CLEAN


def _one_file(path: str, images: str | None, data_root: str | None) -> _Checked:
    path = os.path.join(data_root or '', os.path.expanduser(path))
    images = images and os.path.join(data_root or '', os.path.expanduser(images))
    if not os.path.isfile(path):
        raise DataError(f'the annotation file {os.path.abspath(path)} does not exist')
    if images is not None and not os.path.isdir(images):
        raise DataError(f'--images: the folder {os.path.abspath(images)} does not exist')
    return _Checked(path, images)


def _config(source: str, data_root: str | None, cfg_options: list[str] | None) -> Config:
    cfg = read_config(source)
    merge_options(cfg, cfg_options)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    if data_root is not None:
        set_data_root(cfg, data_root)
    return cfg


def _of_config(source: str, cfg: Config) -> list[_Checked]:
    targets: dict[tuple, _Checked] = {}
    for split in SPLITS:
        for where, dataset in split_datasets(cfg, split):
            kind = dataset_class(dataset)
            if kind is None or not is_local(dataset) or not reads_plain_coco(kind):
                warn(f'{where}: not checked: no CocoDataset with files of this machine')
                continue
            folder, annotations = check_paths(where, dataset)
            if annotations is None:
                warn(f'{where}: not checked: it has no ann_file')
                continue
            key = (os.path.realpath(annotations), folder and os.path.realpath(folder))
            if key in targets:
                targets[key].annotations_required |= split != 'test'
            else:
                targets[key] = _Checked(annotations, folder, split != 'test', reading_of(dataset))
            targets[key].used.append((split, where, dataset))
    if not targets:
        raise MoEConfigError(f'{source}: no data set to check: expected a CocoDataset with ann_file and data_prefix')
    return list(targets.values())


def _compare(cfg: Config, targets: list[_Checked]) -> str | None:
    """Returns what would stop train.py or test.py although every file is valid by itself: labels, metrics, classes."""
    known = {os.path.realpath(target.annotations): target.file for target in targets if target.file is not None}

    def read(where: str, path: str) -> CocoFile:
        return known.get(os.path.realpath(path)) or read_coco(path)

    found = DataSets(cfg)
    for split in SPLITS:
        for target in targets:
            for used, where, dataset in target.used:
                if used == split and target.file is not None:
                    found.add(split, where, dataset, target.file)
        found.complete[split] = len(found.by_split.get(split, ())) == len(split_datasets(cfg, split))
    try:
        found.compare(read)
    except DataError as error:
        return str(error)
    return None


def _check(target: _Checked, keep: int | None, decode: bool, workers: int) -> None:
    target.report = Report(keep)
    try:
        file = read_coco(target.annotations, annotations_required=target.annotations_required, keep=keep)
    except DataError as error:
        target.report.add('unreadable_json', '', str(error))
        target.summary = 'not readable'
        return
    target.report = file.report
    if not file.report.kinds(errors=True):
        target.file = file
    target.summary = (
        f'{file.num_images:,} images, {file.num_annotations:,} annotations, {len(file.categories):,} categories'
    )
    if target.images is not None:
        check_images(
            target.images,
            file.images,
            target.report,
            decode=decode,
            workers=workers,
            reading=target.reading,
            progress=True,
        )


def _print(target: _Checked, examples: int) -> None:
    folder = f'; images in {target.images}' if target.images else '; images not looked at (--images DIR)'
    say(f'{target.annotations}: {target.summary}{folder}')
    for errors, word in ((True, 'error'), (False, 'note')):
        for line in target.report.lines(errors, examples):
            say(f'    {line}' if line.startswith(' ') else f'  {word}: {line}')
    if not target.report.counts:
        say('  clean')
