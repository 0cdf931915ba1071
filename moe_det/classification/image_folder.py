"""Images in folders named by split and class, or in a tar file of such folders, decoded once and kept as arrays."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..errors import DataError
from .labelled_images import SPLITS, LabelledImages

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.ppm', '.pgm', '.tif', '.tiff')


def folder_problem(path: str) -> str | None:
    """Says why ``path`` is not a folder with ``train`` and ``test`` and no tar file; None when it is one."""
    file = Path(path)
    if file.is_file():
        return None if tarfile.is_tarfile(file) else f'{file.absolute()} is neither a folder nor a tar file'
    if not file.is_dir():
        return f'{file.absolute()} does not exist'
    missing = [split for split in SPLITS if not (file / split).is_dir()]
    if missing:
        held = ', '.join(sorted(item.name for item in file.iterdir())[:8]) or 'nothing'
        return f'{file.absolute()} has no folder {" and no folder ".join(missing)}; it holds {held}'
    return None


def read_folder(
    path: str, split: str, image_size: int | None = None, grayscale: bool = False, cache_dir: str | None = None
) -> LabelledImages:
    """Reads ``<split>/<class>/<image>`` below a folder or in a tar file; classes are the folders in order of name.

    Args:
        path: folder, or .tar, .tar.gz and so on.
        split: ``'train'`` or ``'test'``.
        image_size: scale images to this height and width; None wants all images of one size.
        grayscale: one channel instead of three.
        cache_dir: where the decoded arrays are kept; they are rebuilt when the files change. None keeps nothing.

    Raises:
        DataError: a split is missing, the splits have different classes, or an image is damaged or of another size.
    """
    cache = None
    if cache_dir is not None:
        cache = Path(cache_dir) / f'{_fingerprint(Path(path), split, image_size, grayscale)}.npz'
        found = _from_cache(cache)
        if found is not None:
            return found
    with _open_source(Path(path)) as source:
        data = _decode(path, source, split, image_size, grayscale)
    if cache is not None:
        _to_cache(cache, data)
    return data


class _Folder:
    """Files of a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __iter__(self) -> Iterator[tuple[PurePosixPath, bool]]:
        for split in SPLITS:
            for item in sorted((self.root / split).rglob('*')):
                yield PurePosixPath(item.relative_to(self.root).as_posix()), item.is_dir()

    @contextmanager
    def open(self, wanted: set[PurePosixPath]) -> Iterator:
        yield ((name, (self.root / name).open('rb')) for name in sorted(wanted))


class _Tar:
    """Files of a tar file, read from its beginning to its end: a compressed one cannot be read in another order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _members(self, tar: tarfile.TarFile) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo]]:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            split = next((i for i, part in enumerate(parts) if part in SPLITS), None)
            if split is not None:  # folders above train/ and test/ are of no account
                yield PurePosixPath(*parts[split:]), member

    def __iter__(self) -> Iterator[tuple[PurePosixPath, bool]]:
        with tarfile.open(self.path) as tar:
            for name, member in self._members(tar):
                yield name, member.isdir()

    @contextmanager
    def open(self, wanted: set[PurePosixPath]) -> Iterator:
        with tarfile.open(self.path) as tar:
            yield ((name, tar.extractfile(member)) for name, member in self._members(tar) if name in wanted)


@contextmanager
def _open_source(path: Path) -> Iterator[_Folder | _Tar]:
    problem = folder_problem(os.fspath(path))
    if problem:
        raise DataError(problem)
    try:
        yield _Folder(path) if path.is_dir() else _Tar(path)
    except (tarfile.TarError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f'{path.absolute()} is truncated or damaged: {error}') from error
    except OSError as error:
        raise DataError(f'{path.absolute()} cannot be read: {error}') from error


def _decode(path: str, source: _Folder | _Tar, split: str, image_size: int | None, grayscale: bool) -> LabelledImages:
    files: dict[str, list[PurePosixPath]] = {name: [] for name in SPLITS}
    classes: dict[str, set[str]] = {name: set() for name in SPLITS}
    for name, is_folder in source:
        if len(name.parts) >= 3 or (len(name.parts) == 2 and is_folder):
            classes[name.parts[0]].add(name.parts[1])
        if len(name.parts) >= 3 and not is_folder and name.suffix.lower() in SUFFIXES:
            files[name.parts[0]].append(name)
    for part in SPLITS:
        if not classes[part]:
            raise DataError(f'{path}: {part}/ has no folders of classes')
    if classes['train'] != classes['test']:
        raise DataError(
            f'{path}: train/ and test/ have different classes: '
            f'{", ".join(sorted(classes["train"] ^ classes["test"])[:8])} is in one of them alone'
        )
    names = sorted(classes[split])
    number = {name: i for i, name in enumerate(names)}
    order = sorted(set(files[split]))
    decoded: dict[PurePosixPath, np.ndarray] = {}
    with source.open(set(order)) as opened:
        for name, stream in opened:
            with stream:
                decoded[name] = _decode_image(path, name, stream, image_size, grayscale)
    labels = np.array([number[name.parts[1]] for name in order], dtype=np.int64)
    images = [decoded[name] for name in order]
    _check_sizes(path, order, images)
    shape = (0, 1 if grayscale else 3, image_size or 1, image_size or 1)
    stacked = np.stack(images) if images else np.zeros(shape, np.uint8)
    return LabelledImages(stacked, labels, tuple(names))


def _decode_image(path: str, name: PurePosixPath, stream, image_size: int | None, grayscale: bool) -> np.ndarray:
    try:
        image = Image.open(stream).convert('L' if grayscale else 'RGB')
        if image_size is not None and image.size != (image_size, image_size):
            image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    except (EOFError, tarfile.TarError):
        raise  # the archive, not the image
    except Exception as error:
        raise DataError(f'{path}: {name} is not a readable image: {error}') from error
    pixels = np.asarray(image)
    return pixels[None] if grayscale else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _check_sizes(path: str, names: list[PurePosixPath], images: list[np.ndarray]) -> None:
    for name, image in zip(names, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f'{path}: {name} has {image.shape[1]} x {image.shape[2]} pixels, {names[0]} '
                f'{images[0].shape[1]} x {images[0].shape[2]}; set image_size to scale them to one size'
            )


def _fingerprint(path: Path, split: str, image_size: int | None, grayscale: bool) -> str:
    """A file name that changes when the images may have changed."""
    digest = hashlib.sha256(repr((os.path.realpath(path), split, image_size, grayscale)).encode())
    files = sorted(path.rglob('*')) if path.is_dir() else [path]
    for file in files:
        if file.exists():
            state = file.stat()
            digest.update(f'{file}:{state.st_size}:{state.st_mtime_ns};'.encode())
    return f'{path.name.split(".")[0]}-{split}-{digest.hexdigest()[:16]}'


def _from_cache(cache: Path) -> LabelledImages | None:
    try:
        with np.load(cache, allow_pickle=False) as held:
            return LabelledImages(held['images'], held['labels'], tuple(str(name) for name in held['classes']))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # missing or damaged: it is rebuilt


def _to_cache(cache: Path, data: LabelledImages) -> None:
    """Writes a temporary file and renames it: no process sees half a file. What cannot be written is not kept."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix='.tmp', delete=False) as file:
            try:
                np.savez(file, images=data.images, labels=data.labels, classes=np.array(data.classes))
                file.close()
                os.replace(file.name, cache)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError:
        return
