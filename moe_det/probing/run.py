"""Probes a detector on a data set, part by part, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from ..analysis.ground_truth import GroundTruth
from ..common.share import ALONE, Share
from ..errors import DataError
from .findings import Findings, join
from .places import Truth
from .probe import Probe

FINDINGS_FORMAT = 2  # raised when stored parts of older versions can no longer be used
BATCHES_PER_PART = 8


class PartStore:
    """Findings on disk, one file per part, thrown away when they answer another question.

    Args:
        folder: where the parts lie; made when it is not there.
        question: everything that the findings depend on, as plain values.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: Path, question: dict) -> None:
        self.folder = folder
        record = json.dumps({'format': FINDINGS_FORMAT, **question}, sort_keys=True, indent=1)
        note = folder / 'question.json'
        try:
            if folder.is_dir() and (not note.is_file() or note.read_text(encoding='utf-8') != record):
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            note.write_text(record, encoding='utf-8')
        except OSError as error:
            raise DataError(f'{error.filename or folder} cannot be written: {error.strerror}') from error

    def path(self, number: int) -> Path:
        """File of a part."""
        return self.folder / f'part_{number:05d}.npz'

    def load(self, number: int) -> Findings | None:
        """A finished part; None if it is not there or was damaged."""
        try:
            return Findings.load(self.path(number))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, number: int, findings: Findings) -> None:
        """Stores a part, complete or not at all."""
        try:
            findings.save(self.path(number))
        except OSError as error:
            raise DataError(f'{self.path(number)} cannot be written: {os.strerror(error.errno or 0)}') from error


def truths_of(ground_truth: GroundTruth, images: Sequence[int]) -> list[Truth]:
    """The ground truths of a batch.

    Args:
        ground_truth: annotations of at least these images, its categories in the order of the detector's labels.
        images: positions of the images.
    """
    objects = ground_truth.objects
    found = []
    for image in images:
        at = objects.of_image(image)
        found.append(Truth(at, objects.boxes[at], objects.categories[at]))
    return found


class Batches(Protocol):
    """Batches that can be read in part."""

    def __len__(self) -> int:
        """Number of batches."""

    def select(self, numbers: Sequence[int]) -> Iterable[tuple[list[Hashable], dict]]:
        """Ids of the images, as the annotation file has them, and batch for each of these batch numbers.

        The others are not loaded.
        """


def probe_images(
    probe: Probe,
    batches: Batches,
    ground_truth: GroundTruth,
    store: PartStore | None = None,
    progress: Callable[[int], None] = lambda images: None,
    share: Share = ALONE,
    everywhere: bool = False,
) -> Findings | None:
    """Probes all batches.

    Args:
        probe: the questions and the detector.
        batches: always in the same order.
        ground_truth: annotations of the images.
        store: keeps finished parts; what it holds is neither loaded nor probed again. Several processes need one.
        progress: called with the number of images that this process has just finished or found finished.
        share: this process's share of the parts.
        everywhere: every process wants the findings, not that of rank 0 alone.

    Returns:
        The findings on all images, in order; None in processes of another rank than 0 unless ``everywhere``.

    Raises:
        DataError: a part cannot be stored, or one of another process is not there.
    """
    total = -(-len(batches) // BATCHES_PER_PART)
    finished: dict[int, Findings] = {}
    missing = []
    for part in range(share.rank, total, share.processes):
        stored = store.load(part) if store else None
        if stored is None:
            missing.append(part)
        else:
            finished[part] = stored
            progress(len(stored.image_ids))
    every = range(len(batches))
    numbers = [every[part * BATCHES_PER_PART : (part + 1) * BATCHES_PER_PART] for part in missing]
    loaded = iter(batches.select([*itertools.chain(*numbers)]))
    for part, of_part in zip(missing, numbers, strict=True):
        pending = []
        for image_ids, batch in itertools.islice(loaded, len(of_part)):
            images = ground_truth.positions_of(image_ids)
            pending.append(probe(images, batch, truths_of(ground_truth, images)))
            progress(len(image_ids))
        finished[part] = join(pending)
        if store is not None:
            store.save(part, finished[part])
    share.wait()
    if share.rank and not everywhere:
        return None
    for part in range(total):
        if part not in finished:
            found = store.load(part) if store else None
            if found is None:
                raise DataError(f'{store.path(part) if store else "a part"} of another process is not there')
            finished[part] = found
    return join([finished[part] for part in range(total)])
