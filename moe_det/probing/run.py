"""Probes a detector on a data set, part by part, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ..analysis.ground_truth import GroundTruth
from ..errors import DataError
from .findings import Findings, join
from .probe import Probe, Truth

FINDINGS_FORMAT = 1  # raised when stored parts of older versions can no longer be used
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


def truths_of(ground_truth: GroundTruth, image_ids: Sequence[int], category_ids: Sequence[int]) -> list[Truth]:
    """The ground truths of a batch.

    Args:
        ground_truth: annotations of at least these images.
        image_ids: the images.
        category_ids: COCO category id of each label.
    """
    objects = ground_truth.objects
    label_of = {category: label for label, category in enumerate(category_ids)}
    found = []
    for image_id in image_ids:
        at = objects.of_image(image_id)
        labels = np.array([label_of[c] for c in objects.categories[at]], dtype=np.int64)
        found.append(Truth(objects.ids[at], objects.boxes[at], labels))
    return found


def probe_images(
    probe: Probe,
    batches: Iterable[tuple[list[int], dict]],
    ground_truth: GroundTruth,
    store: PartStore | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> Findings:
    """Probes all batches.

    Args:
        probe: the questions and the detector.
        batches: pairs of image ids and batch, always in the same order.
        ground_truth: annotations of the images.
        store: keeps finished parts; what it holds is not probed again.
        progress: called with the number of images of each finished batch.

    Returns:
        The findings on all images, in order.
    """
    parts: list[Findings] = []
    pending: list[Findings] = []
    stored: Findings | None = None
    for number, (image_ids, batch) in enumerate(batches):
        if number % BATCHES_PER_PART == 0:
            if pending:
                parts.append(_finish(pending, len(parts), store))
            pending = []
            stored = store.load(len(parts)) if store else None
        if stored is not None and image_ids[0] in stored.image_ids:
            if number % BATCHES_PER_PART == 0:
                parts.append(stored)
        else:
            truths = truths_of(ground_truth, image_ids, probe.category_ids.tolist())
            pending.append(probe(image_ids, batch, truths))
        progress(len(image_ids))
    if pending:
        parts.append(_finish(pending, len(parts), store))
    return join(parts)


def _finish(pending: Sequence[Findings], number: int, store: PartStore | None) -> Findings:
    part = join(pending)
    if store is not None:
        store.save(number, part)
    return part
