"""The check of image files: their headers, or every pixel, in several processes."""

from __future__ import annotations

import io
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from typing import IO

import mmcv
from PIL import Image
from tqdm import tqdm

from ..datasets.image_bytes import TAIL, is_truncated, may_be_truncated
from ..errors import DataError
from .report import Report, shown

_ORIENTATION = 0x0112  # the EXIF tag
_TIFF_BITS = 258
_HEAD = 32
_LISTED_FOLDERS = 256  # fewer files are looked up one by one, which is quicker than listing a large folder
_CHUNK = 32


@dataclass(frozen=True)
class ImageEntry:
    """An image of an annotation file: place in the list, id, file name, and (width, height) where they are usable."""

    index: int
    id: object
    file_name: str
    size: tuple | None


@dataclass(frozen=True)
class Reading:
    """How the config decodes images (mmcv's ``LoadImageFromFile``)."""

    color_type: str = 'color'
    imdecode_backend: str | None = 'cv2'

    @property
    def turns(self) -> bool:
        """Whether images are turned as their EXIF orientation says."""
        return self.color_type != 'unchanged' and not self.color_type.endswith('ignore_orientation')

    def size(self, content: bytes) -> tuple[int, int] | None:
        """Decodes as a training would; returns (width, height), None if it cannot."""
        try:
            image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
        except Exception:  # the decoders' own errors: cv2.error, OSError, SyntaxError and more
            return None
        return None if image is None else (image.shape[1], image.shape[0])


def missing_files(folder: str, names: Sequence[str]) -> list[str]:
    """Returns those of ``names`` that are not in ``folder``; large numbers are looked up in the folder's listing."""
    if len(names) <= _LISTED_FOLDERS:
        return [name for name in names if not os.path.exists(os.path.join(folder, name))]
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_folder[os.path.dirname(os.path.join(folder, name))].append(name)
    missing = []
    for path, inside in by_folder.items():
        if len(inside) <= _LISTED_FOLDERS:
            missing += [name for name in inside if not os.path.exists(os.path.join(folder, name))]
            continue
        try:
            present = set(os.listdir(path))
        except (OSError, ValueError):
            present = set()
        missing += [name for name in inside if os.path.basename(name) not in present]
    return missing


def look_at_image(path: str, size: tuple | None, decode: bool, reading: Reading) -> list[tuple[str, str]]:
    """Checks one image file.

    The header alone is read, and the end of the file, which a truncated one lacks; whatever looks suspicious there is
    decoded, by the decoder of the config.

    Args:
        path: the file.
        size: (width, height) of the annotation file; None leaves the comparison out.
        decode: decode every image.
        reading: how the config decodes.

    Returns:
        list: kind of problem and detail.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(_HEAD)
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - TAIL))
            tail = file.read()
            if not length:
                return [('empty_image', 'the file has 0 bytes')]
            file.seek(0)
            header = None if decode else _header(file)
            if header is None or header['orientation'] > 1 or may_be_truncated(head, tail):
                file.seek(0)
                return _decoded(file.read(), size, reading)
    except FileNotFoundError:
        return [('missing_image', f'{shown(path, 300)} does not exist')]
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return [('unreadable_file', getattr(error, 'strerror', None) or str(error))]
    return _judge(header, header['size'], size)


def _header(file: IO[bytes]) -> dict | None:
    """Returns what the header says, None if Pillow cannot read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of large images and odd metadata
            with Image.open(file) as image:
                # not image.getexif(), which decodes the whole of a PNG
                orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
                bits = getattr(image, 'tag_v2', {}).get(_TIFF_BITS, (8,))
                deep = image.mode.startswith(('I', 'F')) or max(bits) > 8 or _sixteen_bits(file)
                return {
                    'size': image.size,
                    'mode': image.mode,
                    'deep': deep,
                    'orientation': orientation if isinstance(orientation, int) else 1,
                }
    except Exception:  # Pillow has errors of many kinds for files that it cannot read
        return None


def _sixteen_bits(file: IO[bytes]) -> bool:
    """Pillow hides that a colour PNG has 16 bits; its 25th byte tells."""
    file.seek(0)
    head = file.read(_HEAD)
    return head.startswith(b'\x89PNG') and len(head) > 24 and head[24] == 16


def _decoded(content: bytes, size: tuple | None, reading: Reading) -> list[tuple[str, str]]:
    suspicious = may_be_truncated(content[:_HEAD], content[-TAIL:])
    actual = reading.size(content)
    if suspicious and (actual is None or is_truncated(content)):
        return [('truncated_image', f'the file ends at byte {len(content)}, before the image does')]
    if actual is None:
        return [('undecodable_image', f'{len(content)} bytes that begin with {content[:12]!r}')]
    header = _header(io.BytesIO(content))
    if header is not None and not reading.turns:
        header['orientation'] = 1
    return _judge(header, actual, size)


def _judge(header: dict | None, actual: tuple[int, int], size: tuple | None) -> list[tuple[str, str]]:
    """Compares the size that training sees with the annotation file's, and notes what the decoder converts."""
    found = []
    orientation = 1 if header is None else header['orientation']
    turned = orientation > 1
    if size is not None and tuple(size) != tuple(actual):
        text = f'it is {actual[0]} x {actual[1]}, the annotation file says {shown(size[0])} x {shown(size[1])}'
        text += f' (orientation {orientation})' if turned else ''
        swapped = orientation >= 5 and tuple(size) == tuple(actual[::-1])
        found.append(('exif_rotated' if swapped else 'image_size', text))
    elif turned:
        found.append(('exif', f'orientation {orientation}'))
    if header is not None:
        if header['mode'] == 'CMYK':
            found.append(('cmyk', 'mode CMYK'))
        if header['deep']:
            found.append(('deep', f'Pillow mode {header["mode"]}'))
        if header['mode'] in ('1', 'L', 'LA', 'I', 'F') or header['mode'].startswith('I;'):
            found.append(('greyscale', f'mode {header["mode"]}'))
    return found


def _look(folder: str, decode: bool, reading: Reading, task: tuple[str, tuple | None]) -> list[tuple[str, str]]:
    return look_at_image(os.path.join(folder, task[0]), task[1], decode, reading)


def check_images(
    folder: str,
    entries: Sequence[ImageEntry],
    report: Report,
    *,
    decode: bool = False,
    workers: int = 0,
    reading: Reading | None = None,
    progress: bool = False,
) -> None:
    """Checks the image files of an annotation file.

    Args:
        folder: the folder that their names are relative to.
        entries: the images.
        report: receives the problems.
        decode: decode every image; else headers are read and only suspicious files are decoded.
        workers: processes; 0 and 1 look at the images in this one.
        reading: how the config decodes images.
        progress: show a progress bar, in a terminal.

    Raises:
        DataError: a process died, as decoders do on some damaged files.
    """
    look = partial(_look, folder, decode, reading or Reading())
    tasks = [(entry.file_name, entry.size) for entry in entries]
    bar = partial(tqdm, total=len(tasks), unit='image', disable=None if progress else True)
    if workers <= 1 or len(tasks) <= _CHUNK:
        _note(report, entries, bar(map(look, tasks)))
        return
    # fork, as the data loaders do: a new interpreter per process would import torch and mmdet first
    context = get_context('fork' if 'fork' in get_all_start_methods() else None)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            _note(report, entries, bar(pool.map(look, tasks, chunksize=_CHUNK)))
        except BrokenProcessPool as error:
            raise DataError(
                f'{folder}: a process that looked at the images died (a crash of the decoder, or out of memory); '
                '--workers 0 looks at them in one process'
            ) from error


def _note(report: Report, entries: Sequence[ImageEntry], results: Iterable[list[tuple[str, str]]]) -> None:
    for entry, found in zip(entries, results, strict=True):
        for kind, detail in found:
            report.add(kind, f'images[{entry.index}]', detail, entry.id, entry.file_name)
