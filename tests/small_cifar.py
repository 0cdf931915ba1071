"""CIFAR-10 and CIFAR-100 in their original files, with a few images per class whose colour tells the class."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from moe_det.classification.cifar100_groups import CIFAR100_GROUPS

CIFAR10_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
CIFAR100_CLASSES = tuple(sorted(name for members in CIFAR100_GROUPS.values() for name in members))


def _images(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """(n, 3072) bytes: every class has a colour, every image some noise."""
    colours = np.random.default_rng(0).integers(40, 215, (classes, 3, 1))
    noise = np.random.default_rng(seed).integers(-40, 41, (len(labels), 3, 1024))
    return (colours[labels] + noise).astype(np.uint8).reshape(len(labels), 3072)


def _write(path: Path, content: dict) -> None:
    path.write_bytes(pickle.dumps({key.encode(): value for key, value in content.items()}, protocol=2))


def write_cifar10(root: Path, per_class: int = 1) -> Path:
    """Five training batches and a test batch with ``per_class`` images of each class."""
    folder = root / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    for seed, name in enumerate([*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']):
        labels = np.tile(np.arange(10), per_class)
        _write(folder / name, {'data': _images(labels, 10, seed), 'labels': labels.tolist()})
    _write(folder / 'batches.meta', {'label_names': [name.encode() for name in CIFAR10_CLASSES]})
    return root


def write_cifar100(root: Path, per_class: int = 1) -> Path:
    """A training and a test file with ``per_class`` images of each class."""
    folder = root / 'cifar-100-python'
    folder.mkdir(parents=True)
    for seed, name in enumerate(('train', 'test')):
        labels = np.tile(np.arange(100), per_class)
        _write(folder / name, {'data': _images(labels, 100, seed), 'fine_labels': labels.tolist()})
    _write(folder / 'meta', {'fine_label_names': [name.encode() for name in CIFAR100_CLASSES]})
    return root
