"""The look at the data before anything is built: what would make a run fail or learn nonsense ends in one message.

Annotation files are checked entry by entry; of the images, all are looked for and the headers of some are read. What
mmdet copes with is counted in one warning. Of image classification data the files are looked for. Remote storage
(``s3://``, ``http://``, ``backend_args``) and data sets of other kinds than mmdet's CocoDataset are left alone.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..errors import DataError
from .bad_images_hook import tolerated_images
from .classification_check import check_classification
from .coco_file import CocoFile, read_coco
from .config_edit import is_remote, split_datasets, split_metrics
from .console import near, warn
from .dataset_check import BROKEN_IMAGE, Reading, Report, check_images
from .dataset_check.images import missing_files

_DEMO_DATA = 'python tools/misc/make_shapes.py data/shapes'
_DEMO_CONFIG = 'configs/shapes/retinanet_moe_soft.py'
HEADERS_READ = 256  # of each data set, spread over it; the check of all of them is tools/misc/check_dataset.py


def check_data(cfg: Config, splits: Sequence[str] = ('train', 'val')) -> None:
    """Checks that the folders and annotation files of ``splits`` exist, are COCO's, and share classes with the config.

    Every annotation file is parsed once, however many data sets and metrics name it. Files whose entries are damaged,
    images that are missing, and images whose size is not the file's are errors; images that the run skips
    (:class:`.bad_images_hook.SkipBadImagesHook`) are warnings up to its limit.

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
            kind = dataset_class(dataset)
            if kind is None:
                check_classification(where, dataset)
                continue
            if not is_local(dataset):
                continue
            images, annotations = check_paths(where, dataset)
            used.append(annotations)
            if annotations is None or not reads_plain_coco(kind):
                continue
            key = (os.path.realpath(annotations), scored)
            if key not in files:
                files[key] = read_coco(annotations, annotations_required=scored)
                _check_entries(where, files[key])
            if split == 'train' and not files[key].num_annotations:
                raise DataError(f"{where}: {annotations}: the list 'annotations' is empty, there is nothing to learn")
            _check_classes(where, dataset, kind, files[key], cfg, learns=split == 'train')
            if images is not None:
                _check_images(where, images, files[key], reading_of(dataset), tolerated_images(cfg, split))
            if split == 'train':
                _check_filter(where, dataset, files[key])
        for where, metric in metrics:
            _check_metric(where, metric, used)


def dataset_class(dataset: dict) -> type | None:
    """Returns the dataset's class if it is mmdet's CocoDataset or derived from it."""
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS

    kind = dataset.get('type')
    if isinstance(kind, str):
        kind = DATASETS.get(kind)
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


def reading_of(dataset: dict) -> Reading:
    """Returns how a data set's pipeline decodes its images."""
    for transform in dataset.get('pipeline') or ():
        name = transform.get('type') if isinstance(transform, dict) else None
        if str(getattr(name, '__name__', name)).rpartition('.')[2] == 'LoadImageFromFile':
            return Reading(transform.get('color_type', 'color'), transform.get('imdecode_backend', 'cv2'))
    return Reading()


def _all_of_them(file: CocoFile, images: str | None = None) -> str:
    folder = '' if images is None else f' --images {shlex.quote(images)}'
    return f'python tools/misc/check_dataset.py {shlex.quote(file.path)}{folder}'


def _check_entries(where: str, file: CocoFile) -> None:
    if file.report.kinds(errors=True):
        raise DataError(
            f'{where}: {file.path}: training would fail or learn nonsense:\n'
            + _indented(file.report)
            + f'\n    all of them:  {_all_of_them(file)}\n    run all the same:  --no-data-check'
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
        raise DataError(f'{text}\n    run all the same:  --no-data-check')


def _check_filter(where: str, dataset: dict, file: CocoFile) -> None:
    """mmdet fails without a word when its filter leaves no image."""
    smallest = (dataset.get('filter_cfg') or {}).get('min_size', 0)
    largest = max((min(image.size) for image in file.images if image.size), default=0)
    if largest < smallest:
        raise DataError(
            f'{where}.filter_cfg: min_size={smallest} leaves no image of {file.path}, whose shorter sides have at most '
            f'{largest} pixels'
        )


def _check_classes(where: str, dataset: dict, kind: type, file: CocoFile, cfg: Config, learns: bool) -> None:
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
    if learns and not sum(n for name, n in zip(file.categories, file.usable, strict=True) if name in set(classes)):
        raise DataError(
            f'{where}: {file.path} has no usable annotation of the classes of the config, there is nothing to learn '
            f'({_short(common)})'
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
        if not isinstance(path, str) or not path or not is_local(dict(metric, ann_file=path)):
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
