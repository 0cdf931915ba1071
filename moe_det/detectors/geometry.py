"""Whether detectors have one head geometry: outputs at the same place of their heads then mean the same."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from mmdet.models.detectors import SingleStageDetector
from torch import nn

from ..errors import MoEConfigError

PROBABILITIES, LINEAR = 'probabilities', 'linear'

# what a head's forward returns, list by list, and how it is mixed; subclasses may return something else
MIXED_OUTPUTS = {
    'RetinaHead': (PROBABILITIES, LINEAR),  # class logits, box deltas
    'ATSSHead': (PROBABILITIES, LINEAR, PROBABILITIES),  # and centerness
    'FCOSHead': (PROBABILITIES, LINEAR, PROBABILITIES),
    'GFLHead': (PROBABILITIES, LINEAR),  # logits of the distances' distributions
}


def check_detectors(detectors: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Checks that the outputs of detectors can be mixed place by place.

    Args:
        detectors: as their configs build them, at least one.
        names: of each, for messages.

    Raises:
        MoEConfigError: a head that cannot be mixed, or a detector that differs from the first in head, classes,
            strides, anchors, box coding or preprocessing.
    """
    for detector, name in zip(detectors, names, strict=True):
        _check_head(detector, name)
    expected = _geometry(detectors[0])
    for detector, name in zip(detectors[1:], names[1:], strict=True):
        for what, value in _geometry(detector).items():
            if value != expected[what]:
                raise MoEConfigError(
                    f'{name}: {what} {_short(value)}, but {names[0]} has {_short(expected[what])}: outputs are mixed '
                    'place by place, so all detectors need the same'
                )


def _check_head(detector: nn.Module, name: str) -> None:
    head: Any = getattr(detector, 'bbox_head', None)
    kind = type(head).__name__
    if not isinstance(detector, SingleStageDetector) or kind not in MIXED_OUTPUTS:
        raise MoEConfigError(
            f'{name}: a {type(detector).__name__} with bbox_head={kind}: expected a single-stage detector with one of '
            f'{", ".join(MIXED_OUTPUTS)}'
        )
    if not getattr(head, 'use_sigmoid_cls', True):
        raise MoEConfigError(
            f'{name}: bbox_head.loss_cls.use_sigmoid=False: classes are mixed as sigmoid probabilities'
        )
    if getattr(head, 'norm_on_bbox', False):
        raise MoEConfigError(
            f'{name}: bbox_head.norm_on_bbox=True: such a head predicts in other units in training than in evaluation, '
            'in which the detectors stay; expected False'
        )


def _geometry(detector: Any) -> dict[str, object]:
    """What must be equal, by its name in messages."""
    head, prepares = detector.bbox_head, detector.data_preprocessor
    priors = head.prior_generator
    anchors = getattr(priors, 'base_anchors', None)
    means = [None if value is None else value.flatten().tolist() for value in _mean_and_std(prepares)]
    return {
        'bbox_head': type(head).__name__,
        'num_classes': head.num_classes,
        'strides': [tuple(stride) for stride in priors.strides],
        'anchors': priors.offset if anchors is None else [level.tolist() for level in anchors],
        'bbox_coder': (type(head.bbox_coder).__name__, vars(head.bbox_coder)),
        'reg_max': getattr(head, 'reg_max', None),
        'data_preprocessor': (means, prepares.pad_size_divisor, prepares._channel_conversion),
    }


def _mean_and_std(prepares: Any) -> tuple:
    return getattr(prepares, 'mean', None), getattr(prepares, 'std', None)


def _short(value: object) -> str:
    return textwrap.shorten(str(value), 100, placeholder=' ...')
