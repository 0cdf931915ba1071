"""Tiny image data sets in their original formats, made by the tests."""

from __future__ import annotations

import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR100_NAMES = [f'fine_{i}' for i in range(100)]


def write_mnist(root: Path, name: str = 'MNIST', train: int = 60, test: int = 20, size: int = 28) -> dict:
    """Writes the four idx files below ``root/<name>/raw``; returns split -> (images, labels)."""
    random = np.random.default_rng(0)
    folder = root / name / 'raw'
    folder.mkdir(parents=True, exist_ok=True)
    data = {}
    for split, prefix, count in (('train', 'train', train), ('test', 't10k', test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        # a class is told by where its bright square lies
        images = random.integers(0, 60, (count, size, size), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[row * 9 : row * 9 + 8, column * 7 : column * 7 + 6] = 250
        header = struct.pack('>IIII', 0x00000803, count, size, size)
        (folder / f'{prefix}-images-idx3-ubyte').write_bytes(header + images.tobytes())
        (folder / f'{prefix}-labels-idx1-ubyte').write_bytes(struct.pack('>II', 0x00000801, count) + labels.tobytes())
        data[split] = (images, labels)
    return data


def write_cifar100(root: Path, as_archive: bool = True, count: int = 200, labels: dict | None = None) -> dict:
    """Writes CIFAR-100 in its original format, pickled dicts of protocol 2; returns split -> (pixels, labels)."""
    random = np.random.default_rng(1)
    folder = root / 'cifar-100-python'
    folder.mkdir(parents=True)
    data = {}
    for split in ('train', 'test'):
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        fine = (labels or {}).get(split) or [i % 100 for i in range(count)]
        content = {'filenames': [f'{i}.png' for i in range(count)], 'batch_label': split, 'data': pixels}
        content |= {'fine_labels': fine, 'coarse_labels': [label // 5 for label in fine]}
        (folder / split).write_bytes(pickle.dumps(content, protocol=2))
        data[split] = (pixels, fine)
    meta = {'fine_label_names': CIFAR100_NAMES, 'coarse_label_names': [f'coarse_{i}' for i in range(20)]}
    (folder / 'meta').write_bytes(pickle.dumps(meta, protocol=2))
    if as_archive:
        with tarfile.open(root / 'cifar-100-python.tar.gz', 'w:gz') as tar:
            tar.add(folder, arcname=folder.name)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    return data


def write_folder(root: Path, classes=('cat', 'ant'), train: int = 3, test: int = 2, size: int = 8) -> dict:
    """Writes ``<split>/<class>/<number>.png`` below ``root``; returns split -> class -> list of (H, W, 3) images."""
    random = np.random.default_rng(2)
    data = {}
    for split, count in (('train', train), ('test', test)):
        data[split] = {}
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            data[split][name] = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]
            for i, image in enumerate(data[split][name]):
                Image.fromarray(image).save(folder / f'{i:03}.png')
    return data
