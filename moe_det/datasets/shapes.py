"""A synthetic detection data set in COCO format: shapes on textured backgrounds, from near and from far.

Its point is a known truth about object size: sizes are nearly log-uniform from 8 px to most of the image and
independent of the class, and ``scene_scale`` says how much they depend on the image. With 0 an image tells nothing
about the size of its objects; with 1 all its objects have nearly one size.

The default 0.4 follows photographs. Measured is the share of the variance of ``log sqrt(area)`` that lies between
images: the intraclass correlation ICC(1) of a one-way analysis of variance with images as groups, over the annotated
mask areas of objects that are not crowds. The last column is, over images, the correlation of the logarithm of the
number of objects with their mean log size:

========================================================  =======================  =================
data                                                      ICC(1)                   correlation
========================================================  =======================  =================
subset of 421 images of COCO 2017 (418 with objects)      0.34 (95 %: 0.30-0.38)   -0.64
``scene_scale`` 0.4, seeds 0, 1, 2, 300 images of 256 px  0.36, 0.24, 0.36         -0.80, -0.71, -0.74
``scene_scale`` 0, same seeds                             -0.04, -0.01, -0.05      -0.48, -0.44, -0.46
``scene_scale`` 1, same seeds                             0.95, 0.92, 0.94         -0.94, -0.91, -0.92
========================================================  =======================  =================

The interval is a bootstrap over images; ``benchmarks/shapes_statistics.py`` prints the table. The subset's class mix is
flatter than COCO's. Of the synthetic objects about 42 % are small, 35 % medium and 23 % large by COCO's limits,
whatever the scene scale.

``scene_kinds`` above 1 gives every image one of several kinds with classes and a background tint of its own: images
that a gate can tell apart, and classes that are hard to tell apart without knowing the kind.

Each class has a hue of its own, most shapes are plain and stand nearly upright before a quiet background: the set is
meant to be learned within minutes, so it says nothing about how well a detector tells shapes apart.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..common.atomic_file import write_atomically
from ..errors import DataError, MoEConfigError
from .coco_writer import annotations_of
from .shapes_folder import (
    DESCRIPTION,
    SPLITS,
    annotation_file,
    check_folder,
    image_folder,
    is_complete,
    prepare_folder,
)
from .shapes_render import render_scene
from .shapes_scene import SCENES, class_names, draw_scene

FORMAT = 3  # raised when the same settings would give other images
DEFAULT_SCENE_SCALE = 0.4
MOST_IMAGES = 1_000_000  # per split; image ids of val start here
MOST_KINDS = 8  # with more the hues of two classes would overlap


@dataclass(frozen=True)
class ShapesSettings:
    """What a data set is made from; the same settings give the same files.

    Attributes:
        train: number of training images.
        val: number of validation images.
        size: side of the square images in pixels.
        seed: seed of all images; each image has its own stream, independent of the number of images.
        scene_scale: 0 (sizes independent of the image) to 1 (one size per image).
        scene_kinds: kinds of scenes, each with six classes of its own.
        scenes: ``'all'``, or only ``'far'`` or ``'near'`` ones, whose objects are small or large.
    """

    train: int = 800
    val: int = 200
    size: int = 256
    seed: int = 0
    scene_scale: float = DEFAULT_SCENE_SCALE
    scene_kinds: int = 1
    scenes: str = 'all'

    def __post_init__(self) -> None:
        images = ('train', 0, MOST_IMAGES - 1), ('val', 0, MOST_IMAGES - 1)
        for name, least, most in (*images, ('size', 64, 4096), ('scene_kinds', 1, MOST_KINDS)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise MoEConfigError(f'{name}={value}: expected an integer from {least} to {most}')
        if self.seed < 0:
            raise MoEConfigError(f'seed={self.seed}: expected an integer >= 0')
        if not 0 <= self.scene_scale <= 1:
            raise MoEConfigError(f'scene_scale={self.scene_scale}: expected a number from 0 to 1')
        if self.scenes not in SCENES:
            raise MoEConfigError(f'scenes={self.scenes!r}: expected one of {", ".join(SCENES)}')

    def record(self) -> dict:
        """What the annotation files keep in ``info``."""
        settings = asdict(self)
        if self.scene_kinds == 1:  # as in data sets that were made before there were kinds
            del settings['scene_kinds']
        if self.scenes == 'all':
            del settings['scenes']
        return {'description': DESCRIPTION, 'format': FORMAT, **settings}


def matches(folder: str | Path, settings: ShapesSettings) -> bool:
    """Whether a folder holds the complete data set of these settings, images included."""
    return is_complete(Path(folder), settings.record())


def make_image(settings: ShapesSettings, split: str, index: int) -> tuple[bytes, list[dict]]:
    """Makes one image.

    Args:
        settings: of the data set.
        split: ``'train'`` or ``'val'``.
        index: position in the split.

    Returns:
        The JPEG file's bytes, and its COCO annotations.
    """
    rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(SPLITS.index(split), index)))
    scene = draw_scene(rng, settings.size, settings.scene_scale, settings.scene_kinds, settings.scenes)
    image, instances = render_scene(rng, scene, settings.size)
    file = io.BytesIO()
    image.save(file, format='JPEG', quality=95)
    return file.getvalue(), annotations_of(image_id(split, index), instances)


def image_id(split: str, index: int) -> int:
    """Id of an image; unique over both splits."""
    return SPLITS.index(split) * MOST_IMAGES + index + 1


def file_name(split: str, index: int) -> str:
    """Name of an image's file, as in COCO."""
    return f'{image_id(split, index):012d}.jpg'


def _make_and_save(settings: ShapesSettings, folder: Path, split: str, index: int) -> list[dict]:
    content, annotations = make_image(settings, split, index)
    (image_folder(folder, split) / file_name(split, index)).write_bytes(content)
    return annotations


def make_shapes(
    folder: str | Path,
    settings: ShapesSettings,
    *,
    overwrite: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Makes the data set in COCO's layout: ``annotations/``, ``train2017/``, ``val2017/``.

    The annotation files come last, so a folder without them is unfinished and is rebuilt. The same settings give the
    same bytes with the same versions of numpy and Pillow.

    Args:
        folder: where to.
        settings: what to make.
        overwrite: replaces a data set of other settings.
        workers: processes; the result does not depend on it.
        progress: called with the number of finished images and of all.

    Returns:
        Whether something was made; False when it was there already.

    Raises:
        DataError: the folder holds something else or cannot be written.
    """
    folder = Path(folder)
    if matches(folder, settings):
        return False
    try:
        check_folder(folder, settings.record(), overwrite)
        prepare_folder(folder, settings.record())
        _make_all(folder, settings, workers, progress)
    except OSError as error:
        raise DataError(f'{error.filename or folder} cannot be written: {error.strerror}') from error
    return True


def _make_all(folder: Path, settings: ShapesSettings, workers: int, progress: Callable[[int, int], None]) -> None:
    total, done = settings.train + settings.val, 0
    contents = {}
    pool = ProcessPoolExecutor(workers) if workers > 1 else None
    try:
        for split in SPLITS:
            make = partial(_make_and_save, settings, folder, split)
            count = getattr(settings, split)
            results = pool.map(make, range(count), chunksize=8) if pool else map(make, range(count))
            annotations = []
            for found in results:
                annotations += found
                done += 1
                progress(done, total)
            contents[split] = _coco(settings, split, annotations)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    for split, content in contents.items():
        write_atomically(annotation_file(folder, split), json.dumps(content))


def _coco(settings: ShapesSettings, split: str, annotations: list[dict]) -> dict:
    images = [
        {
            'id': image_id(split, index),
            'file_name': file_name(split, index),
            'width': settings.size,
            'height': settings.size,
        }
        for index in range(getattr(settings, split))
    ]
    names = class_names(settings.scene_kinds)
    categories = [{'id': i + 1, 'name': name, 'supercategory': 'shape'} for i, name in enumerate(names)]
    return {
        'info': settings.record(),
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': categories,
    }
