"""The folder of a synthetic data set: COCO's layout, what lies there already, and what may be removed.

Two things tell what a folder holds. ``shapes.json`` is written first and marks the folder as the generator's own; the
annotation files are written last and mean that their images are complete. Without one of them nothing is ever removed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..common.atomic_file import write_atomically
from ..errors import DataError

SPLITS = ('train', 'val')
MARKER = 'shapes.json'
DESCRIPTION = 'moe_det synthetic shapes'

_IMAGE_NAME = re.compile(r'\d{12}\.jpg')


def annotation_file(folder: Path, split: str) -> Path:
    """COCO's path of a split's annotations."""
    return folder / 'annotations' / f'instances_{split}2017.json'


def image_folder(folder: Path, split: str) -> Path:
    """COCO's folder of a split's images."""
    return folder / f'{split}2017'


def is_complete(folder: Path, record: dict) -> bool:
    """Whether a folder holds every file of the data set that ``record`` describes."""
    for split in SPLITS:
        content = _read(annotation_file(folder, split))
        if content.get('info') != record or not image_folder(folder, split).is_dir():
            return False
        if not {image['file_name'] for image in content['images']} <= _names(image_folder(folder, split)):
            return False
    return True


def check_folder(folder: Path, record: dict, overwrite: bool) -> None:
    """Refuses a folder that holds anything the generator may not replace.

    Args:
        folder: where the data set shall go.
        record: what it will be made from.
        overwrite: whether shapes of another record may be replaced.

    Raises:
        DataError: ``folder`` is a file, holds foreign files, or holds another data set and ``overwrite`` is False.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f'{folder} is a file; expected a folder for the data set')
    records = [_read(folder / MARKER), *(_read(annotation_file(folder, split)).get('info') for split in SPLITS)]
    records = [stored for stored in records if stored]
    foreign = _foreign_files(folder)
    if any(not isinstance(stored, dict) or stored.get('description') != DESCRIPTION for stored in records):
        foreign.append('annotations of another data set')
    elif not records and any(_names(image_folder(folder, split)) for split in SPLITS):
        foreign.append('images of another data set')  # real COCO images look the same by name
    if foreign:
        raise DataError(f'{folder} holds other files ({", ".join(foreign[:3])}); name an empty or new folder')
    other = next((stored for stored in records if stored != record), None)
    if other and not overwrite:
        different = {key: other.get(key) for key, value in record.items() if other.get(key) != value}
        raise DataError(
            f'{folder} holds shapes made with other settings ({different}); add --overwrite to replace them, or name '
            'another folder'
        )


def prepare_folder(folder: Path, record: dict) -> None:
    """Removes a former data set, annotations first, marks the folder and makes its parts."""
    for split in SPLITS:
        annotation_file(folder, split).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MARKER, json.dumps(record))
    annotation_file(folder, SPLITS[0]).parent.mkdir(exist_ok=True)
    for split in SPLITS:
        image_folder(folder, split).mkdir(exist_ok=True)
        for name in _names(image_folder(folder, split)):
            (image_folder(folder, split) / name).unlink()


def _foreign_files(folder: Path) -> list[str]:
    annotations = {annotation_file(folder, split).name for split in SPLITS}
    ours = {MARKER, 'annotations', *(image_folder(folder, split).name for split in SPLITS)}
    foreign = [name for name in _names(folder) if name.removesuffix('.part') not in ours]
    for name in _names(folder / 'annotations'):
        if name.removesuffix('.part') not in annotations:
            foreign.append(f'annotations/{name}')
    for split in SPLITS:
        images = image_folder(folder, split)
        foreign += [f'{images.name}/{name}' for name in _names(images) if not _IMAGE_NAME.fullmatch(name)]
    return sorted(foreign)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _read(path: Path) -> dict:
    """Content of a json file; empty if there is none or it is not a json object."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
