"""The check of an annotation file's entries against what mmdet's CocoDataset and pycocotools do with them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .ids import is_id, other_type, report_lost_ids
from .notation import TOLERANCE, other_notation
from .report import LARGEST_NUMBER, Report, shown

# what mmdet's CocoDataset reads from every entry
ENTRY_KEYS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}
_NUMBERS = (int, float)


@dataclass
class Usable:
    """The annotations that mmdet keeps: by category id, all of them and the crowds among them."""

    all: Counter = field(default_factory=Counter)
    crowds: Counter = field(default_factory=Counter)


def check_entries(content: dict, report: Report) -> Usable:
    """Checks the entries of the three lists and adds what it finds to ``report``.

    Args:
        content: a parsed annotation file, whose ``'images'``, ``'annotations'`` and ``'categories'`` are lists.
        report: receives the problems.

    Returns:
        Usable: the annotations that mmdet would keep.
    """
    categories = _check_categories(content['categories'], report)
    sizes, names = _check_images(content['images'], report)
    annotations = _Annotations(sizes, names, categories, report)
    for index, annotation in enumerate(content['annotations']):
        if not annotations.is_clean(annotation):
            annotations.diagnose(index, annotation)
    annotations.judge_the_whole(content['annotations'])
    return annotations.usable


class _Entry:
    """One entry and its place in the file."""

    def __init__(self, kind: str, index: int, content: Any, report: Report, file: object = None) -> None:
        self.where, self.keys = f'{kind}[{index}]', ENTRY_KEYS[kind]
        self.content, self.report = content, report
        self.id = content.get('id') if isinstance(content, dict) else None
        self.file = file

    def add(self, kind: str, detail: str) -> None:
        self.report.add(kind, self.where, detail, self.id, self.file)

    def complete(self) -> bool:
        """Reports an entry that is not an object or lacks keys."""
        if not isinstance(self.content, dict):
            self.add('not_an_object', f'expected an object with {_names(self.keys)}, got {shown(self.content)}')
            return False
        missing = [key for key in self.keys if key not in self.content]
        if missing:
            self.add('missing_key', f'no {_names(missing)}; mmdet reads {_names(self.keys)}')
        return not missing

    def has_id(self, key: str) -> bool:
        """Reports an id that none can be, and an entry's own id that is a text."""
        value = self.content[key]
        if not is_id(value):
            self.add('bad_id', f'{key}={shown(value)}, expected an integer')
        elif key == 'id' and isinstance(value, str):
            self.add('text_id', f'id={shown(value)}')
        return is_id(value)

    def is_number(self, value: Any, text: str, largest: float = LARGEST_NUMBER) -> bool:
        """Reports a value that is not a number up to ``largest``; ``text`` shows it."""
        if type(value) in _NUMBERS:
            if not abs(value) <= largest:
                self.add('non_finite', text)
                return False
            return True
        self.add('number_as_text' if isinstance(value, str) else 'not_a_number', f'{text}, expected a number')
        return False


def _names(keys) -> str:
    return ', '.join(repr(key) for key in keys)


def _check_categories(entries: list, report: Report) -> set:
    ids, names = set(), set()
    for index, category in enumerate(entries):
        entry = _Entry('categories', index, category, report)
        if not entry.complete():
            continue
        name = category['name']
        if not isinstance(name, str) or not name:
            entry.add('bad_name', f'name={shown(name)}, expected a text')
        elif name in names:
            entry.add('duplicate_category_name', f'name={shown(name)}')
        else:
            names.add(name)
        if not entry.has_id('id'):
            continue
        if category['id'] in ids:
            entry.add('duplicate_category_id', f'name={shown(name)}')
        ids.add(category['id'])
    report_lost_ids('categories', ids, report)
    return ids


def _check_images(entries: list, report: Report) -> tuple[dict, dict]:
    """Returns by image id the size, None where it is unusable, and the file name."""
    sizes: dict[Any, Any] = {}
    names: dict[Any, Any] = {}
    files = set()
    for index, image in enumerate(entries):
        name = image.get('file_name') if isinstance(image, dict) else None
        entry = _Entry('images', index, image, report, name)
        if not entry.complete():
            continue
        if not isinstance(name, str) or not name:
            entry.add('bad_name', f'file_name={shown(name)}, expected a text')
        elif name in files:
            entry.add('duplicate_file', 'an earlier image has the same file_name')
        else:
            files.add(name)
        width, height = image['width'], image['height']
        given = f'width={shown(width)}, height={shown(height)}'
        good = entry.is_number(width, given) and entry.is_number(height, given)
        if good and not (width > 0 and height > 0):
            entry.add('bad_image_size', given)
            good = False
        if not entry.has_id('id'):
            continue
        ident = image['id']
        if ident in sizes:
            entry.add('duplicate_image_id', f'the id is that of {shown(names[ident], 200)} too')
        sizes[ident] = (width, height) if good else None
        names[ident] = name
    report_lost_ids('images', sizes, report)
    return sizes, names


class _Annotations:
    """The check of the annotations, one by one; most are clean and take the short way."""

    def __init__(self, sizes: dict, names: dict, categories: set, report: Report) -> None:
        self.sizes, self.names, self.categories, self.report = sizes, names, categories, report
        self.seen: set = set()
        self.usable = Usable()

    def is_clean(self, annotation: Any) -> bool:
        """Tells whether nothing at all is to be said about ``annotation``, and counts it then."""
        try:
            x, y, w, h = annotation['bbox']
            width, height = self.sizes[annotation['image_id']]
            area, category, ident = annotation['area'], annotation['category_id'], annotation['id']
            crowd = annotation['iscrowd']
            clean = (
                type(x) in _NUMBERS
                and type(y) in _NUMBERS
                and type(w) in _NUMBERS
                and type(h) in _NUMBERS
                and type(area) in _NUMBERS
                and x >= 0
                and y >= 0
                and w >= 1
                and h >= 1
                and x + w <= width + TOLERANCE
                and y + h <= height + TOLERANCE
                and x < width
                and y < height
                and 0 < area <= LARGEST_NUMBER**2
                and category in self.categories
                and type(ident) is int
                and ident != 0
                and ident not in self.seen
                and type(crowd) is int
                and crowd in (0, 1)
                and not annotation.get('ignore', False)
                and type(annotation['bbox']) is list
            )
        except (TypeError, KeyError, ValueError):
            return False
        if clean:
            self.seen.add(ident)
            self._keep(category, crowd)
        return clean

    def _keep(self, category: object, crowd: object) -> None:
        self.usable.all[category] += 1
        if crowd:
            self.usable.crowds[category] += 1

    def diagnose(self, index: int, annotation: Any) -> None:
        """Reports what is wrong with an annotation that is not clean."""
        image_id = annotation.get('image_id') if isinstance(annotation, dict) else None
        known = is_id(image_id) and image_id in self.sizes
        entry = _Entry('annotations', index, annotation, self.report, self.names[image_id] if known else None)
        if not entry.complete():
            return
        if entry.has_id('id'):
            if annotation['id'] in self.seen:
                entry.add('duplicate_annotation_id', 'an earlier annotation has the same id')
            elif annotation['id'] == 0:
                entry.add('zero_id', f'id={shown(annotation["id"])}')
            self.seen.add(annotation['id'])
        self._check_marks(entry, annotation)
        if entry.has_id('image_id') and not known:
            other = other_type(image_id, self.sizes)
            if other is None:
                entry.add('orphan_annotation', f'image_id={shown(image_id)}')
            else:
                entry.add('id_type', f'image_id={shown(image_id)}, the image has id={shown(other)}')
        category = annotation['category_id']
        categorised = entry.has_id('category_id')
        if categorised and category not in self.categories:
            categorised = False
            other = other_type(category, self.categories)
            if other is None:
                entry.add('unknown_category', f'category_id={shown(category)}')
            else:
                entry.add('id_type', f'category_id={shown(category)}, the category has id={shown(other)}')
        fits = self._check_box(entry, annotation, self.sizes[image_id] if known else None)
        if fits and categorised and not annotation.get('ignore', False):
            self._keep(category, annotation.get('iscrowd'))

    def _check_marks(self, entry: _Entry, annotation: dict) -> None:
        """Reports marks that are neither 0 nor 1, and those that mmdet and the evaluation take differently."""
        for key in ('iscrowd', 'ignore'):
            value = annotation.get(key)
            if value is not None and not (isinstance(value, _NUMBERS) and value in (0, 1)):
                entry.add('bad_mark', f'{key}={shown(value)}, expected 0 or 1')
            elif key == 'ignore' and value:
                entry.add('ignored', f'ignore={shown(value)}')
            elif key == 'iscrowd' and value is None:
                entry.add('no_iscrowd', f'iscrowd={shown(value)}' if key in annotation else "no 'iscrowd'")

    def _check_box(self, entry: _Entry, annotation: dict, size: tuple | None) -> bool:
        """Reports a box that is not as it should be; tells whether mmdet keeps it."""
        box, area = annotation['bbox'], annotation['area']
        if not (isinstance(box, list) and len(box) == 4):
            entry.add('bad_box', f'bbox={shown(box)}, expected four numbers [x, y, width, height]')
            return False
        given = f'bbox={shown(box)}'
        if not all([entry.is_number(value, given) for value in box]):
            return False
        if not entry.is_number(area, f'area={shown(area)}', LARGEST_NUMBER**2):
            return False
        x, y, w, h = box
        side = min(w, h)
        kind = None
        if side < 1:
            kind = 'negative_box' if side < 0 else 'zero_box' if side == 0 else 'tiny_box'
            entry.add(kind, given)
        kept = kind is None
        if area <= 0:
            entry.add('negative_area' if area < 0 else 'no_area', f'area={shown(area)}')
            kept = False
        if size is None:
            return False
        inside = min(x, y) >= -TOLERANCE and x + w <= size[0] + TOLERANCE and y + h <= size[1] + TOLERANCE
        touches = min(x + w, size[0]) > max(x, 0) and min(y + h, size[1]) > max(y, 0)
        if kind is None and not (inside and touches):
            kind = 'partly_outside' if touches else 'outside_image'
            entry.add(kind, f'{given}, the image is {size[0]} x {size[1]}')
        return kept and touches

    def judge_the_whole(self, annotations: list) -> None:
        """Reports what only all annotations together tell."""
        notation = other_notation(annotations, self.sizes)
        if notation is not None:
            self.report.add(notation[0], 'annotations', notation[1])
        usable, crowds = sum(self.usable.all.values()), sum(self.usable.crowds.values())
        if annotations and usable == crowds and not self.report.kinds(errors=True):
            text = f'none of {len(annotations):,} is usable'
            self.report.add('only_crowds' if crowds else 'nothing_usable', 'annotations', text)
