"""Reading images so that a damaged file costs one image and not the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset, Compose

from ..datasets.image_bytes import TAIL, is_truncated, may_be_truncated
from ..errors import DataError

SKIP, BLANK, REFUSE = 'skip', 'blank', 'error'
MOST_IN_A_ROW = 50  # damaged images one after the other: then it is not single files that are damaged


class TolerantLoader:
    """Reads an image with mmcv's ``LoadImageFromFile`` and writes down what it cannot read.

    A truncated image counts as unreadable even where the decoder makes something of it. Every image that cannot be read
    becomes a line of the journal, a file of JSON lines, which processes of a data loader share.

    Args:
        load: the transform that reads.
        policy: ``'skip'`` gives None, for which mmengine's data sets take another image; ``'blank'`` gives a black
            image of the annotated size; ``'error'`` raises.
        journal: the file; a line has ``path``, ``img_id``, ``reason`` and ``policy``.
        max_images: different images that one process may fail to read.
    """

    def __init__(self, load: Callable[[dict], dict | None], policy: str, journal: str, max_images: int) -> None:
        self.load = load
        self.policy = policy
        self.journal = journal
        self.max_images = max_images
        self._bad: dict[str, str] = {}
        self._in_a_row = 0

    def __call__(self, results: dict) -> dict | None:
        """Returns the results with the image; see ``policy`` for an image that cannot be read.

        Raises:
            DataError: the image cannot be read and the policy is to refuse it, too many images cannot be read, or a
                blank image has no size.
        """
        given = dict(results)
        path = str(results.get('img_path'))
        reason = None
        try:
            loaded = self.load(results)
            if loaded is None:
                reason = 'it cannot be read'
        except MemoryError:
            raise
        except Exception as error:  # the file system's, the storage's and the decoders' own errors
            reason = _reason(error, path)
        reason = reason or _truncated(path, decoded=True)
        if reason is None:
            self._in_a_row = 0
            return loaded
        return self._cope(given, path, reason)

    def _cope(self, results: dict, path: str, reason: str) -> dict | None:
        if self.policy == REFUSE:
            raise DataError(
                f'{path}: the image cannot be read: {reason}. Left out, it would silently change the metrics: fix '
                "the file, take it out of the annotations, or let SkipBadImagesHook's evaluation='blank' count its "
                'objects as missed'
            )
        self._bad[path] = reason
        self._in_a_row += 1
        self._write(path, results.get('img_id'), reason)
        if len(self._bad) > self.max_images or self._in_a_row > MOST_IN_A_ROW:
            raise too_many(self._bad, self.max_images, self.journal)
        if self.policy == SKIP:
            return None
        height, width = results.get('height'), results.get('width')
        if not (isinstance(height, int) and isinstance(width, int)):
            raise DataError(f'{path}: the image cannot be read, and its size is not known for a blank one: {reason}')
        results.update(img=np.zeros((height, width, 3), np.uint8), img_shape=(height, width), ori_shape=(height, width))
        return results

    def _write(self, path: str, img_id: object, reason: str) -> None:
        line = json.dumps({'path': path, 'img_id': str(img_id), 'reason': reason, 'policy': self.policy}) + '\n'
        # one short write to a file opened for appending: lines of several processes do not mix
        descriptor = os.open(self.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def too_many(bad: dict[str, str], max_images: int, journal: str) -> DataError:
    """Returns the error for more unreadable images (path -> reason) than a run may have."""
    listed = ''.join(f'\n    {path}: {reason}' for path, reason in list(bad.items())[:5])
    more = f'\n    and {len(bad) - 5:,} more, listed in {journal}' if len(bad) > 5 else ''
    limit = f'more than SkipBadImagesHook.max_images={max_images}'
    if len(bad) <= max_images:
        limit = f'{MOST_IN_A_ROW} attempts to find another one failed'
    return DataError(f'{len(bad):,} images cannot be read, {limit}:{listed}{more}')


def _reason(error: Exception, path: str) -> str:
    """Says what is wrong with the file, where the decoders only say that they failed."""
    if isinstance(error, FileNotFoundError):
        return 'no such file'
    try:
        size = os.path.getsize(path)
    except (OSError, ValueError):  # not a file of this machine
        size = None
    if size == 0:
        return 'the file is empty'
    if size is not None and isinstance(error, (AssertionError, cv2.error)):
        return _truncated(path, decoded=False) or f'{size} bytes that cannot be decoded as an image'
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]


def _truncated(path: str, decoded: bool) -> str | None:
    """Says that a local file is cut off; of one that was decoded nevertheless, Pillow must say so too."""
    try:
        with open(path, 'rb') as file:
            start = file.read(16)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            if not may_be_truncated(start, file.read()):
                return None
            file.seek(0)
            if not decoded or is_truncated(file.read()):
                return f'the image is truncated, its file ends at byte {size}'
            return None
    except (OSError, ValueError):  # not a file of this machine
        return None


def loaders_of(dataset: object) -> Iterator[tuple[Compose, int]]:
    """Yields where the data sets inside ``dataset`` (wrappers, concatenations) read images: pipeline and position."""
    inner = [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())]
    for part in inner:
        if part is not None:
            yield from loaders_of(part)
    if isinstance(dataset, BaseDataset) and isinstance(dataset.pipeline, Compose):
        for position, transform in enumerate(dataset.pipeline.transforms):
            if isinstance(transform, (LoadImageFromFile, TolerantLoader)):
                yield dataset.pipeline, position


def make_tolerant(dataset: object, policy: str, journal: str, max_images: int) -> int:
    """Wraps the image readers of ``dataset`` in place, see :class:`TolerantLoader`; returns how many there are."""
    count = 0
    for pipeline, position in loaders_of(dataset):
        load = pipeline.transforms[position]
        load = load.load if isinstance(load, TolerantLoader) else load
        pipeline.transforms[position] = TolerantLoader(load, policy, journal, max_images)
        count += 1
    return count
