"""Reading an annotation file in COCO's format, with errors that name the file and what was expected in it."""

from __future__ import annotations

import json
import mmap
import re
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from ..analysis.coco_json import no_collection, read_json
from ..errors import DataError
from .entries import ENTRY_KEYS, check_entries
from .images import ImageEntry
from .report import Report


@dataclass
class CocoFile:
    """What the checks keep of an annotation file.

    Attributes:
        path: the file.
        num_images: number of images it lists.
        num_annotations: number of annotations it lists.
        categories: the names of its categories, in its order.
        category_ids: their ids.
        usable: annotations of each category that mmdet keeps, in the same order.
        crowds: those among them that are crowds, which are neither learned nor scored.
        images: its images that have a file name.
        report: what is wrong with its entries.
    """

    path: str
    num_images: int
    num_annotations: int
    categories: list[str]
    category_ids: list
    usable: list[int]
    crowds: list[int]
    images: list[ImageEntry]
    report: Report


def read_coco(path: str, annotations_required: bool = True, keep: int | None = 5) -> CocoFile:
    """Parses an annotation file and checks its entries.

    Args:
        path: the file.
        annotations_required: False for a test set whose annotations are not public: the list may be missing.
        keep: examples kept of each kind of problem, None keeps all.

    Returns:
        CocoFile: the counts, names and problems that later checks need; the parsed file itself is released.

    Raises:
        DataError: the file is not a COCO annotation file; names the list that is wrong and what was expected.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        hint = ''
        if isinstance(content, list) and content and isinstance(content[0], dict) and 'score' in content[0]:
            hint = ' (a list of scored boxes is a detection result, not annotations)'
        raise DataError(
            f"{path}: expected a JSON object with the lists 'images', 'annotations' and 'categories', got "
            f'{_kind(content)}{hint}'
        )
    if not annotations_required:
        content.setdefault('annotations', [])
    for name in ENTRY_KEYS:
        _check_list(path, content, name)
    if not content['images']:
        raise DataError(f"{path}: the list 'images' is empty, expected at least one image")
    report = Report(keep)
    with no_collection():
        usable = check_entries(content, report)
    categories = [category for category in content['categories'] if isinstance(category, dict)]
    return CocoFile(
        path=path,
        num_images=len(content['images']),
        num_annotations=len(content['annotations']),
        categories=[str(category.get('name')) for category in categories],
        category_ids=[category.get('id') for category in categories],
        usable=[_count(usable.all, category.get('id')) for category in categories],
        crowds=[_count(usable.crowds, category.get('id')) for category in categories],
        images=list(_image_entries(content['images'])),
        report=report,
    )


def _count(usable: Counter, ident: object) -> int:
    return usable[ident] if isinstance(ident, Hashable) else 0


def _image_entries(images: list) -> Iterator[ImageEntry]:
    for index, image in enumerate(images):
        name = image.get('file_name') if isinstance(image, dict) else None
        if isinstance(name, str) and name:
            size = (image.get('width'), image.get('height'))
            good = all(type(side) in (int, float) and side > 0 for side in size)
            yield ImageEntry(index, image.get('id'), name, size if good else None)


def _check_list(path: str, content: dict, name: str) -> None:
    if name not in content:
        found = ', '.join(repr(key) for key in list(content)[:10]) or 'nothing'
        raise DataError(f'{path}: no COCO annotations: the list {name!r} is missing, the file has {found}')
    if not isinstance(content[name], list):
        raise DataError(f'{path}: {name!r}: expected a list, got {_kind(content[name])}')


def _kind(value: object) -> str:
    kinds = {dict: 'an object', list: 'a list', str: 'a text', type(None): 'null', bool: 'true or false'}
    return kinds.get(type(value), 'a number')


def read_categories(path: str) -> list[str]:
    """Returns the names of a file's categories in its order, quickly: the rest of the file is not parsed if possible.

    Raises:
        DataError: the file cannot be read, or has no categories.
    """
    entries = _categories_alone(path)
    if entries is None:
        content = read_json(path)
        entries = content.get('categories') if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: no COCO annotations: expected the list 'categories'")
    return [str(entry.get('name')) for entry in entries]


def _categories_alone(path: str) -> list | None:
    """Parses the one list in the file that has the key 'categories'; None if there are more, or something is odd."""
    try:
        with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            places = [match.end() for match in re.finditer(rb'"categories"\s*:\s*(?=\[)', content)]
            if len(places) != 1:
                return None
            length = 1 << 20
            while True:
                part = content[places[0] : places[0] + length]
                try:
                    return json.JSONDecoder().raw_decode(part.decode(errors='ignore'))[0]
                except json.JSONDecodeError:
                    if places[0] + length >= len(content):
                        return None
                    length *= 8
    except (OSError, ValueError, RecursionError):  # ValueError: an empty file cannot be mapped
        return None
