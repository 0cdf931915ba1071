"""A folder of photographs in COCO's layout, of which a config's classes are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from moe_det.analysis.coco_json import source_of
from moe_det.dataset_check.coco_file import CocoFile, read_coco, read_json
from moe_det.errors import DataError

LAYOUT = 'annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/ and val2017/'


@dataclass(frozen=True)
class Folder:
    """What a run needs to know of a folder.

    Attributes:
        path: absolute.
        name: of the folder, for the record.
        classes: names of the categories, in the order of both annotation files.
        category_ids: their ids in the file of validation.
        images: numbers of images for training and for validation.
        digest: of both annotation files.
        source: what the annotation file says of where it is from.
    """

    path: str
    name: str
    classes: tuple[str, ...]
    category_ids: tuple[Hashable, ...]
    images: tuple[int, int]
    digest: str
    source: str

    @property
    def val_file(self) -> str:
        """The annotations of validation."""
        return _annotations(self.path, 'val')

    def val_images(self) -> list[dict]:
        """The images of validation as their file lists them."""
        return read_json(self.val_file)['images']


def read_folder(path: str) -> Folder:
    """Looks at a folder and reads its classes.

    Raises:
        DataError: a missing part, a damaged file, categories or an order of them that differ between training and
            validation, a category without an object to learn from, or fewer images than categories.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(path):
        raise DataError(f'--data-root: {path} is not a folder; expected one in COCO layout, with {LAYOUT}')
    needed = [_annotations(path, split) for split in ('train', 'val')]
    needed += [os.path.join(path, f'{split}2017') for split in ('train', 'val')]
    missing = [os.path.relpath(item, path) for item in needed if not os.path.exists(item)]
    if missing:
        held = ', '.join(sorted(os.listdir(path))[:8]) or 'nothing'
        raise DataError(
            f'--data-root: {path} is not in COCO layout: {", ".join(missing)} missing (it holds {held}); expected '
            f'{LAYOUT}'
        )
    train, val = (read_coco(file) for file in needed[:2])
    _check_categories(train, val)
    text = b''.join(Path(file).read_bytes() for file in needed[:2])
    return Folder(
        path=path,
        name=os.path.basename(path),
        classes=tuple(train.categories),
        category_ids=tuple(entry['id'] for entry in read_json(val.path)['categories']),
        images=(train.num_images, val.num_images),
        digest=hashlib.sha256(text).hexdigest()[:12],
        source=source_of(read_json(train.path)) or '',
    )


def _annotations(path: str, split: str) -> str:
    return os.path.join(path, 'annotations', f'instances_{split}2017.json')


def _check_categories(train: CocoFile, val: CocoFile) -> None:
    if not train.categories:
        raise DataError(f"{train.path}: the list 'categories' is empty, expected the names of the classes")
    if set(train.categories) != set(val.categories):
        apart = sorted(set(train.categories) ^ set(val.categories))
        raise DataError(
            f'{val.path}: other categories than {train.path}: {", ".join(map(repr, apart[:8]))} in one of them alone'
        )
    if train.categories != val.categories:
        raise DataError(
            f'{val.path}: its categories have another order than those of {train.path} '
            f'({", ".join(val.categories[:4])}, ...); mmdet numbers labels by that order, so sort both alike'
        )
    empty = [name for name, count in zip(train.categories, train.usable, strict=True) if not count]
    if empty:
        raise DataError(
            f'{train.path}: no object of {", ".join(map(repr, empty[:8]))}, so it cannot be learnt; take it out of '
            "'categories' in both annotation files"
        )
    if train.num_images < len(train.categories):
        raise DataError(
            f'{train.path}: {train.num_images} images for {len(train.categories)} categories, expected more images '
            'than categories'
        )
