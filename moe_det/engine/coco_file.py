"""Reading an annotation file in COCO's format, with errors that name the file and what was expected in it."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import dataclass
from itertools import islice

from ..errors import DataError

# entries of each list that are looked at one by one; a damaged file shows itself in its first thousands
CHECKED_ENTRIES = 5000

# what mmdet's CocoDataset reads from every entry
_ENTRY_KEYS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}


@dataclass
class CocoFile:
    """What the checks keep of an annotation file.

    Attributes:
        path: the file.
        num_images: number of images it lists.
        num_annotations: number of annotations it lists.
        categories: the names of its categories, in its order.
        sample_files: a few of its images' file names, spread over the list.
    """

    path: str
    num_images: int
    num_annotations: int
    categories: list[str]
    sample_files: list[str]


def read_json(path: str) -> object:
    """Returns the parsed content of a JSON file.

    Raises:
        DataError: the file cannot be opened, is no text, is truncated or is no JSON; names the byte where it ends.
    """
    collecting = gc.isenabled()
    gc.disable()  # halves the time: nothing in the millions of new lists and dicts is garbage yet
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise DataError(
            f'{path}: expected JSON text, found binary data at byte {error.start}{_beginning(path)}'
        ) from error
    except json.JSONDecodeError as error:
        size = os.path.getsize(path)
        if size == 0:
            raise DataError(f'{path}: the file is empty, expected COCO annotations in JSON') from error
        offset = len(error.doc[: error.pos].encode())
        if error.pos >= len(error.doc.rstrip()) or error.msg.startswith('Unterminated string'):
            raise DataError(
                f'{path}: the file is truncated: it ends at byte {size} in the middle of its JSON (what is open there '
                f'began at byte {offset}). Copy or download it again'
            ) from error
        raise DataError(f'{path}: not JSON: {error.msg} at byte {offset} of {size}{_beginning(path)}') from error
    finally:
        if collecting:
            gc.enable()


def _beginning(path: str) -> str:
    with open(path, 'rb') as file:
        return f'; the file begins with {file.read(40)!r}'


def read_coco(path: str, annotations_required: bool = True) -> CocoFile:
    """Parses an annotation file and checks that mmdet's CocoDataset can read it.

    Args:
        path: the file.
        annotations_required: False for a test set whose annotations are not public: the list may be missing.

    Returns:
        CocoFile: the counts and names that later checks need; the parsed file itself is released.

    Raises:
        DataError: the file is no COCO annotation file; names the entry that is wrong and what was expected.
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
    for name, keys in _ENTRY_KEYS.items():
        _check_list(path, content, name, keys)
    for index, annotation in enumerate(islice(content['annotations'], CHECKED_ENTRIES)):
        box = annotation['bbox']
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)):
            raise DataError(f'{path}: annotations[{index}].bbox: expected four numbers [x, y, w, h], got {box!r:.80}')
    images = content['images']
    if not images:
        raise DataError(f"{path}: the list 'images' is empty, expected at least one image")
    step = max(1, len(images) // 16)
    return CocoFile(
        path=path,
        num_images=len(images),
        num_annotations=len(content['annotations']),
        categories=[str(category['name']) for category in content['categories']],
        sample_files=[str(image['file_name']) for image in images[::step]],
    )


def _check_list(path: str, content: dict, name: str, keys: tuple[str, ...]) -> None:
    if name not in content:
        found = ', '.join(repr(key) for key in list(content)[:10]) or 'nothing'
        raise DataError(f'{path}: no COCO annotations: the list {name!r} is missing, the file has {found}')
    entries = content[name]
    if not isinstance(entries, list):
        raise DataError(f'{path}: {name!r}: expected a list, got {_kind(entries)}')
    for index, entry in enumerate(islice(entries, CHECKED_ENTRIES)):
        if not isinstance(entry, dict):
            raise DataError(f'{path}: {name}[{index}]: expected an object with {_names(keys)}, got {_kind(entry)}')
        missing = [key for key in keys if key not in entry]
        if missing:
            raise DataError(f'{path}: {name}[{index}] has no {_names(missing)}; mmdet reads {_names(keys)}')


def _names(keys) -> str:
    return ', '.join(repr(key) for key in keys)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(value: object) -> str:
    kinds = {dict: 'an object', list: 'a list', str: 'a text', type(None): 'null', bool: 'true or false'}
    return kinds.get(type(value), 'a number')
