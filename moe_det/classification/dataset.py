"""Image classification data that stays in memory, on the device, as one tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.dist import barrier, is_main_process
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

from ..checks import check_count
from ..errors import DataError, MoEConfigError, unknown_name
from .augmentation import BatchAugmentation
from .image_folder import folder_problem, read_folder
from .labelled_images import (
    NAMES,
    NUM_CLASSES,
    SPLITS,
    LabelledImages,
    download_original,
    original_problem,
    read_original,
)


class ClassificationDataset:
    """MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, or a folder of images, as one tensor on the device.

    A batch is formed by indexing that tensor, so an epoch costs what the model costs. In a data loader it needs the
    sampler ``EpochSampler`` and the collate function ``whole_batch``, which leaves a batch as it is::

        train_dataloader = dict(
            batch_size=512, num_workers=0, collate_fn=dict(type='whole_batch'),
            sampler=dict(type='EpochSampler', shuffle=True),
            dataset=dict(type='ClassificationDataset', name='MNIST', data_root='data', split='train'))

    MNIST and FashionMNIST lie where torchvision keeps them (``<data_root>/MNIST/raw``), CIFAR in
    ``cifar-10-batches-py`` or ``cifar-100-python``, or in their original archive. An image folder has
    ``train/<class>/`` and ``test/<class>/``, or is a tar file of such folders.

    Args:
        name: ``'MNIST'``, ``'FashionMNIST'``, ``'CIFAR10'`` or ``'CIFAR100'``; None for an image folder of your own.
        data_root: folder of the data.
        split: ``'train'`` or ``'test'``.
        image_folder: folder or tar file below ``data_root``; with a ``name`` it is read where the original files are
            missing.
        image_size: scale the images of a folder to this height and width; None wants all of one size.
        grayscale: read the images of a folder with one channel.
        download: download the original files where they are missing.
        cache_dir: where the decoded images of a folder are kept as one file of arrays; None keeps nothing.
        augment: keys of ``BatchAugmentation`` (``flip``, ``jitter``, ``padding``), for training.
        subset: take only so many images, evenly spaced over the split.
        device: where the images stay; None for the device of the run.

    Raises:
        MoEConfigError: an unknown name, split or augmentation.
        DataError: files are missing, damaged or do not fit together.
    """

    def __init__(
        self,
        name: str | None = None,
        data_root: str = 'data',
        split: str = 'train',
        image_folder: str | None = None,
        image_size: int | None = None,
        grayscale: bool = False,
        download: bool = False,
        cache_dir: str | None = 'work_dirs/cache',
        augment: dict | None = None,
        subset: int | None = None,
        device: str | None = None,
    ) -> None:
        if split not in SPLITS:
            raise MoEConfigError(f'dataset.split: {unknown_name("split", split, SPLITS)}')
        if subset is not None:
            check_count('dataset', 'subset', subset)
        try:
            self.augment = None if augment is None else BatchAugmentation(**augment)
        except (TypeError, ValueError) as error:
            raise MoEConfigError(f'dataset.augment: {error}') from error
        root = os.path.expanduser(data_root)
        if download and name is not None and files_problem(name, root, image_folder) is not None:
            if is_main_process():
                download_original(name, root)
            barrier()
        problem = files_problem(name, root, image_folder)
        if problem is not None:
            raise DataError(f'dataset: {problem}')
        data = self._read(name, root, split, image_folder, image_size, grayscale, cache_dir)
        data = data.check(f'{name or image_folder} in {Path(root).absolute()}, split {split}')
        if name is not None and len(data.classes) != NUM_CLASSES[name]:
            raise DataError(f'{image_folder} has {len(data.classes)} classes, {name} has {NUM_CLASSES[name]}')
        self.name, self.split, self.classes = name, split, data.classes
        self.images, self.labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
        if subset is not None and subset < len(self.labels):
            chosen = torch.arange(subset) * len(self.labels) // subset
            self.images, self.labels = self.images[chosen], self.labels[chosen]
        self._device = device
        self._numbers: Tensor | None = None
        self.set_epoch(0, 0)

    @staticmethod
    def check_files(where: str, dataset: dict) -> None:
        """Checks that the files of a data set are there before anything is built; reads none.

        Args:
            where: the config key of the data set.
            dataset: its config.

        Raises:
            DataError: files are missing and are not to be downloaded; names the folder and what to do.
            MoEConfigError: neither a known name nor an image folder.
        """
        root = os.path.expanduser(dataset.get('data_root', 'data'))
        problem = files_problem(dataset.get('name'), root, dataset.get('image_folder'))
        if problem is not None and not (dataset.get('download') and dataset.get('name') is not None):
            download = f', or download it with --cfg-options {where}.download=True' if dataset.get('name') else ''
            raise DataError(f"{where}: {problem}. Name the data set's folder with --data-root DIR{download}")

    @staticmethod
    def _read(
        name: str | None,
        root: str,
        split: str,
        image_folder: str | None,
        image_size: int | None,
        grayscale: bool,
        cache_dir: str | None,
    ) -> LabelledImages:
        if name is not None and original_problem(name, root) is None:
            return read_original(name, root, split)
        assert image_folder is not None  # files_problem asks for one of the two
        return read_folder(os.path.join(root, image_folder), split, image_size, grayscale, cache_dir)

    @property
    def metainfo(self) -> dict:
        """Names of the data set and its classes."""
        return dict(dataset=self.name or 'folder', classes=self.classes)

    @property
    def device(self) -> torch.device:
        """Where batches are formed."""
        return torch.device('cpu' if get_worker_info() is not None else self._device or get_device())

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Draws the augmentations of an epoch; the sampler calls it."""
        if self.augment is not None:
            self._numbers = self.augment.draw(len(self), seed, epoch).to(self.images.device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One image (C, H, W) and its label ()."""
        batch = self.__getitems__([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """A batch: ``inputs`` (n, C, H, W), bytes or float32 in 0 ... 1, and ``labels`` (n,)."""
        self._settle()
        # batches that a hook marks hold their indices as a list; going through the marks takes long
        indices = torch.as_tensor(getattr(indices, 'indices', indices)).to(self.labels.device, non_blocking=True)
        images, labels = self.images[indices], self.labels[indices]
        if self.augment is not None:
            assert self._numbers is not None  # the sampler has called set_epoch
            images = self.augment(images, self._numbers[indices])
        return dict(inputs=images, labels=labels)

    def _settle(self) -> None:
        """Moves the data to the device at the first batch; in a worker process they stay in its memory."""
        if self.labels.device.type != self.device.type:
            self.images, self.labels = self.images.to(self.device), self.labels.to(self.device)
            self._numbers = None if self._numbers is None else self._numbers.to(self.device)


def files_problem(name: str | None, root: str, image_folder: str | None) -> str | None:
    """Says what is missing of a data set, without reading it; None when it is there.

    Args:
        name: of a known data set, or None.
        root: folder of the data.
        image_folder: folder or tar file below ``root``.

    Raises:
        MoEConfigError: neither a known name nor an image folder.
    """
    if name is not None and name not in NAMES:
        raise MoEConfigError(f'dataset.name: {unknown_name("data set", name, NAMES)}')
    problem = None if name is None else original_problem(name, root)
    if image_folder is None:
        if name is None:
            raise MoEConfigError(f'dataset: expected name, one of {", ".join(NAMES)}, or image_folder')
        return problem
    if name is not None and problem is None:
        return None
    of_folder = folder_problem(os.path.join(root, image_folder))
    if of_folder is None or name is None:
        return of_folder
    return f'{problem}; and {of_folder}' if os.path.exists(os.path.join(root, image_folder)) else problem


def whole_batch(batch: Mapping | Sequence) -> Mapping:
    """Collate function that takes a batch as the data set formed it; a list of samples is stacked."""
    return batch if isinstance(batch, Mapping) else default_collate(list(batch))
