"""Checks the files of an image classification data set before anything is built."""

from __future__ import annotations

import os

from ..datasets.classification import ClassificationDataset, files_problem
from ..errors import DataError


def check_classification(where: str, dataset: dict) -> bool:
    """Checks that the files of an image classification data set are there; reads none.

    Args:
        where: the config key of the data set.
        dataset: its config.

    Returns:
        Whether the config is one of a ``ClassificationDataset``.

    Raises:
        DataError: files are missing and are not to be downloaded; names the folder and what to do.
        MoEConfigError: neither a known name nor an image folder.
    """
    from mmdet.registry import DATASETS

    kind = dataset.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(kind, type) and issubclass(kind, ClassificationDataset)):
        return False
    root = os.path.expanduser(dataset.get('data_root', 'data'))
    problem = files_problem(dataset.get('name'), root, dataset.get('image_folder'))
    if problem is not None and not (dataset.get('download') and dataset.get('name') is not None):
        download = f', or download it with --cfg-options {where}.download=True' if dataset.get('name') else ''
        raise DataError(f"{where}: {problem}. Name the data set's folder with --data-root DIR{download}")
    return True
