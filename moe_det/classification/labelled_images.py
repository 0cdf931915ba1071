"""Images and their classes in memory, and the readers of the data sets' original files."""

from __future__ import annotations

import os
import pickle
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO
from urllib.error import URLError

import numpy as np
from torchvision import datasets

from ..errors import DataError

SPLITS = ('train', 'test')


@dataclass(frozen=True)
class LabelledImages:
    """A split of a data set.

    Attributes:
        images: (N, C, H, W) bytes.
        labels: (N,) class of each image.
        classes: K names.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def check(self, where: str) -> LabelledImages:
        """Returns itself if images, labels and classes fit.

        Raises:
            DataError: no images, another number of labels, a label outside 0 ... K - 1, or a class without images.
        """
        if not len(self.images):
            raise DataError(f'{where}: there are no images')
        if len(self.images) != len(self.labels):
            raise DataError(f'{where}: {len(self.images)} images, but {len(self.labels)} labels')
        outside = self.labels[(self.labels < 0) | (self.labels >= len(self.classes))]
        if len(outside):
            raise DataError(f'{where}: label {outside[0]}, expected 0 to {len(self.classes) - 1}')
        counts = np.bincount(self.labels, minlength=len(self.classes))
        empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if empty:
            raise DataError(f'{where}: no image of class {", ".join(empty[:8])}')
        return self


# -- MNIST, Fashion-MNIST --------------------------------------------------------------------------------------

IDX_FILES = tuple(f'{part}-{kind}-ubyte' for part in ('train', 't10k') for kind in ('images-idx3', 'labels-idx1'))


def mnist_problem(name: str, root: str) -> str | None:
    """Says what is missing of MNIST or FashionMNIST below ``root``; None when all files are there."""
    folder = Path(root) / name / 'raw'
    missing = [file for file in IDX_FILES if not (folder / file).is_file()]
    if not missing:
        return None
    if len(missing) == len(IDX_FILES):
        return f'{folder.absolute()} does not hold {name} ({IDX_FILES[0]} and three more files, unpacked)'
    return f'{folder.absolute()} holds {name} only in part: {", ".join(missing)} is missing'


def read_mnist(name: str, root: str, split: str) -> LabelledImages:
    """Reads MNIST or FashionMNIST, whose files are there.

    Raises:
        DataError: a file is damaged.
    """
    kind = getattr(datasets, name)
    try:
        data = kind(root, train=split == 'train')
    except Exception as error:  # torchvision asserts, or fails in numpy
        raise DataError(f'{Path(root).absolute() / name / "raw"}: the {split} files are damaged: {error}') from error
    return LabelledImages(data.data.numpy()[:, None], data.targets.numpy().astype(np.int64), tuple(kind.classes))


# -- CIFAR -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cifar:
    folder: str
    archive: str
    files: dict[str, tuple[str, ...]]
    labels: str
    meta: str
    names: str


CIFAR = {
    'CIFAR10': _Cifar(
        'cifar-10-batches-py',
        'cifar-10-python.tar.gz',
        {'train': tuple(f'data_batch_{i}' for i in range(1, 6)), 'test': ('test_batch',)},
        'labels',
        'batches.meta',
        'label_names',
    ),
    'CIFAR100': _Cifar(
        'cifar-100-python',
        'cifar-100-python.tar.gz',
        {'train': ('train',), 'test': ('test',)},
        'fine_labels',
        'meta',
        'fine_label_names',
    ),
}

# what a pickled dict of arrays, texts and numbers is made of; anything else could run code
_PICKLED = {
    (f'numpy.{core}.{module}', name)
    for core in ('core', '_core')
    for module, name in (('multiarray', '_reconstruct'), ('numeric', '_frombuffer'))
} | {('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode')}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which is not part of a data set')
        if module.startswith('numpy.core') and hasattr(np, '_core'):
            module = module.replace('numpy.core', 'numpy._core')  # numpy 2 renamed it
        return super().find_class(module, name)


def cifar_problem(name: str, root: str) -> str | None:
    """Says what is missing of CIFAR10 or CIFAR100 below ``root``; None when folder or archive are there."""
    kind = CIFAR[name]
    folder, archive = Path(root) / kind.folder, Path(root) / kind.archive
    if archive.is_file() and not folder.is_dir():
        return None
    wanted = [*kind.files['train'], *kind.files['test'], kind.meta]
    missing = [file for file in wanted if not (folder / file).is_file()]
    if not folder.is_dir():
        return f'{Path(root).absolute()} holds neither {kind.folder}/ nor {kind.archive}'
    return f'{folder.absolute()} holds {name} only in part: {", ".join(missing)} is missing' if missing else None


def read_cifar(name: str, root: str, split: str) -> LabelledImages:
    """Reads CIFAR10 or CIFAR100 from its folder or, where that is missing, out of its archive.

    Raises:
        DataError: a file is damaged or missing in the archive.
    """
    kind = CIFAR[name]
    folder, archive = Path(root) / kind.folder, Path(root) / kind.archive
    if folder.is_dir():
        parts, names = _read_cifar_files(kind, split, lambda file: (folder / file).open('rb'), folder)
    else:
        try:
            with tarfile.open(archive) as tar:
                parts, names = _read_cifar_files(kind, split, partial(_member, tar, kind.folder), archive)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f'{archive.absolute()} cannot be read: {error}') from error
    images = np.concatenate([pixels for pixels, _ in parts])
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3 * 32 * 32:
        raise DataError(f'{folder}: data has shape {images.shape} of {images.dtype}, expected (N, 3072) bytes')
    labels = np.concatenate([np.asarray(labels, dtype=np.int64).reshape(-1) for _, labels in parts])
    return LabelledImages(images.reshape(-1, 3, 32, 32), labels, tuple(names))


def _member(tar: tarfile.TarFile, folder: str, file: str) -> IO[bytes]:
    stream = tar.extractfile(f'{folder}/{file}')
    if stream is None:
        raise DataError('it is no file')
    return stream


def _read_cifar_files(
    kind: _Cifar, split: str, open_file: Callable[[str], IO[bytes]], where: Path
) -> tuple[list[tuple[np.ndarray, Sequence[int]]], Sequence[str]]:
    def entries(file: str, *keys: str) -> list:
        try:
            with open_file(file) as stream:
                content = _ArrayUnpickler(stream, encoding='latin1').load()
            content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
            return [content[key] for key in keys]
        except (tarfile.TarError, EOFError, OSError):
            raise
        except KeyError as error:
            raise DataError(f'{where.absolute()}: {file}: {error.args[0]} is missing') from error
        except Exception as error:  # a damaged pickle fails in any way
            raise DataError(f'{where.absolute()}: {file} cannot be read: {error}') from error

    try:
        parts = [tuple(entries(file, 'data', kind.labels)) for file in kind.files[split]]
        (names,) = entries(kind.meta, kind.names)
    except EOFError as error:
        raise DataError(f'{where.absolute()} is truncated') from error
    return parts, [name.decode() if isinstance(name, bytes) else name for name in names]


# -- all of them -----------------------------------------------------------------------------------------------

NAMES = ('MNIST', 'FashionMNIST', *CIFAR)
NUM_CLASSES = {'MNIST': 10, 'FashionMNIST': 10, 'CIFAR10': 10, 'CIFAR100': 100}


def original_problem(name: str, root: str) -> str | None:
    """Says what is missing of a data set's original files below ``root``; None when they are there."""
    return cifar_problem(name, root) if name in CIFAR else mnist_problem(name, root)


def read_original(name: str, root: str, split: str) -> LabelledImages:
    """Reads a data set from its original files.

    Raises:
        DataError: a file is damaged.
    """
    return read_cifar(name, root, split) if name in CIFAR else read_mnist(name, root, split)


def download_original(name: str, root: str) -> None:
    """Downloads a data set's original files with torchvision.

    Raises:
        DataError: there is no network, or the folder cannot be written.
    """
    try:
        getattr(datasets, name)(root, download=True)
    except (URLError, OSError, RuntimeError) as error:
        raise DataError(
            f'{name} cannot be downloaded to {os.path.abspath(root)}: {error}. Put its files there, or name their '
            'folder with --data-root DIR'
        ) from error
