"""Test-time augmentation: several views of each image, of the sizes that the config tests at."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

from ..common.config_edit import split_datasets
from ..common.console import warn
from ..errors import MoEConfigError


def enable_tta(cfg: Config) -> None:
    """Wraps the model for test-time augmentation, in place.

    Takes ``tta_model`` and ``tta_pipeline`` of the config; what is missing becomes the image and its mirror image,
    merged by the non-maximum suppression of the model's own ``test_cfg``. If none of the sizes in ``tta_pipeline`` is
    that of the test pipeline, it was made for another config: its sizes are scaled so that the first one is.

    Raises:
        MoEConfigError: there is no test dataset, or its pipeline does not end in ``PackDetInputs``.
    """
    datasets = split_datasets(cfg, 'test')
    if not datasets:
        raise MoEConfigError(f'--tta: {cfg.filename} has no test_dataloader.dataset')
    if cfg.get('tta_model') is None:
        test_cfg = cfg.model.get('test_cfg') or {}
        test_cfg = test_cfg.get('rcnn', test_cfg)
        nms = test_cfg.get('nms', dict(type='nms', iou_threshold=0.5))
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=nms, max_per_img=test_cfg.get('max_per_img', 100)))
    for where, dataset in datasets:
        own = cfg.get('tta_pipeline')
        dataset['pipeline'] = (
            _fitted(deepcopy(own), dataset, where) if own else _flip_pipeline(dataset.get('pipeline'), where)
        )
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _flip_pipeline(pipeline: Any, where: str) -> list:
    last = pipeline[-1] if pipeline else {}
    name = _name(last)
    if name != 'PackDetInputs':
        raise MoEConfigError(
            f'--tta: {where}.pipeline ends in {name!r}, expected PackDetInputs; write the augmentations as '
            'tta_pipeline in the config'
        )
    # mirrored boxes are mapped back with these two entries of the image's metadata
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
    views = [[dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]]
    views.append([dict(type='PackDetInputs', meta_keys=keys)])
    return [*deepcopy(pipeline[:-1]), dict(type='TestTimeAug', transforms=views)]


def _fitted(pipeline: list, dataset: dict, where: str) -> list:
    """The config's own augmentations, with the sizes of their images fitted to the test pipeline's."""
    wanted = next((_size(step) for step in _steps(dataset.get('pipeline')) if _size(step)), None)
    sized = [(step, size) for step in _steps(pipeline) if (size := _size(step)) is not None]
    resizes, sizes = [step for step, _ in sized], [size for _, size in sized]
    # with keep_ratio a size is that of the longer and the shorter side, in any order
    if not sizes or (wanted is not None and sorted(wanted) in [sorted(size) for size in sizes]):
        return pipeline
    given = ', '.join(map(str, sizes))
    if wanted is None:
        warn(f'--tta: tta_pipeline resizes to {given}, the test pipeline to no size: the views are flips')
        return _flip_pipeline(dataset.get('pipeline'), where)
    for step, size in zip(resizes, sizes, strict=True):
        step['scale'] = tuple(round(side * max(size) / max(sizes[0])) for side in wanted)
    for step in _steps(pipeline):
        if _name(step) == 'Pad' and isinstance(step.get('size'), (tuple, list)):
            step['size'] = (round(max(wanted) * max(step['size']) / max(sizes[0])),) * 2
    scaled = ', '.join(str(step['scale']) for step in resizes)
    warn(
        f'--tta: tta_pipeline resizes to {given}, the test pipeline to {wanted}: its sizes become {scaled} '
        '(tta_pipeline=None takes the image and its mirror image)'
    )
    return pipeline


def _steps(pipeline: object) -> Iterator[dict]:
    """The transforms of a pipeline and of the views in it."""
    for step in pipeline if isinstance(pipeline, (list, tuple)) else ():
        if isinstance(step, dict):
            yield step
            yield from _steps(step.get('transforms'))
        else:
            yield from _steps(step)


def _name(step: dict) -> str:
    kind = step.get('type')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def _size(step: dict) -> tuple[int, int] | None:
    """(width, height) that a transform resizes to; None for one that does not, or by a factor."""
    scale = step.get('scale') if _name(step) == 'Resize' else None
    if isinstance(scale, (tuple, list)) and len(scale) == 2:
        return scale[0], scale[1]
    return (scale, scale) if isinstance(scale, int) else None
