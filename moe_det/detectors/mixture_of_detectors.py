"""A mixture whose experts are whole detectors, trained before and frozen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmdet.models.detectors import BaseDetector, SingleStageDetector
from mmdet.registry import MODELS
from torch import Tensor

from ..checks import check_flag, is_integer
from ..common.checkpoints import check_checkpoint, fill_model, read_checkpoint, state_of
from ..common.config_file import read_config
from ..errors import MoEConfigError
from ..layers.settings import MoESettings
from ..routing.intervention import Intervention
from ..routing.selection import FULL_SOFTMAX, SOFTMAX, STRAIGHT_THROUGH
from .geometry import check_detectors
from .mixed_head import BackboneMaps, DetectorExpert, mixed_head


class MixtureOfDetectors(SingleStageDetector):
    """Frozen single-stage detectors whose outputs a gate mixes before NMS (after arXiv 2412.11608, on segmentation).

    The gate sees the pooled last maps of the detectors' backbones. Class probabilities (and centerness) are mixed after
    the sigmoid, box deltas as they are; losses and selection of detections are those of the detectors' own head. The
    gate alone is trained::

        model = dict(type='MixtureOfDetectors', detectors=[
            dict(config='configs/shapes/retinanet_dense.py', checkpoint='work_dirs/far/epoch_4.pth'),
            dict(config='configs/shapes/retinanet_dense.py', checkpoint='work_dirs/near/epoch_4.pth')])

    The paper's gate is a convolution and two linear layers on maps of one fixed size; pooling, mixing boxes, gates for
    boxes and top-k are our own choice. Checkpoints of the mixture hold the detectors, whose own files are read only
    when a training starts.

    Args:
        detectors: at least two dicts with ``checkpoint`` and ``config`` (a file, or the name of a config of this
            package or of mmdet) or ``model`` (the dict itself).
        top_k: detectors that an image runs; None: all of them. With 1 the weight is 1, straight through: such a gate
            gets a gradient from one detector per image only, and may settle on one for all images.
        test_top_k: detectors that an image runs in evaluation, where it is not ``top_k``: a gate that is trained to mix
            all detectors can choose one.
        classwise: whether each class has a gate of its own, and the boxes another; every detector then runs.
        gate: as in :class:`~moe_det.layers.settings.MoESettings`; it is given a map of one pixel.
        gate_sees: numbers of the detectors whose backbones the gate sees; None: all. The backbones that it does not see
            run where their detector is chosen.
        constraint: as in MoESettings.
        noise: as in MoESettings.
        weighting: as in MoESettings, but for ``full_softmax``, which would shrink boxes; None: ``straight_through``
            with ``top_k=1``, else ``softmax``.
        dispatch: as in MoESettings.
        forced: a detector, or a list of them that share every image equally, in place of the gate in evaluation: one
            of them alone, or all as an ensemble.
        test_cfg: in place of the first detector's.
        data_preprocessor: in place of the first detector's.

    Raises:
        MoEConfigError: fewer than two detectors, an entry that cannot be built from, or detectors of different
            geometry.
    """

    is_init: bool  # as of every module of mmengine

    def __init__(
        self,
        detectors: Sequence[dict],
        top_k: int | None = None,
        test_top_k: int | None = None,
        classwise: bool = False,
        gate: dict | None = None,
        gate_sees: Sequence[int] | None = None,
        constraint: dict | list[dict] | None = None,
        noise: bool | None = None,
        weighting: str | None = None,
        dispatch: str = 'sorted',
        forced: int | Sequence[int] | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
    ) -> None:
        if not isinstance(detectors, (list, tuple)) or len(detectors) < 2:
            raise MoEConfigError(
                f'model.detectors={detectors!r}: expected a list of at least two dicts with checkpoint and config or '
                'model'
            )
        check_flag('model', 'classwise', classwise)
        count = len(detectors)
        models = [_model_of(entry, f'model.detectors.{number}') for number, entry in enumerate(detectors)]
        BaseDetector.__init__(self, data_preprocessor=data_preprocessor or models[0].get('data_preprocessor'))
        self.checkpoints = [entry['checkpoint'] for entry in detectors]
        self.names = [f'model.detectors.{number}' for number in range(count)]
        built: list[Any] = [MODELS.build(copy.deepcopy(model)) for model in models]
        check_detectors(built, self.names)
        top_k = count if top_k is None else top_k
        keys = dict(gate=gate, constraint=constraint, noise=noise)
        settings = MoESettings.from_config(
            {
                **{key: value for key, value in keys.items() if value is not None},
                'num_experts': count,
                'top_k': top_k,
                'soft_mixture': True,
                'unit': 'image',
                'weighting': weighting or (STRAIGHT_THROUGH if top_k == 1 else SOFTMAX),
                'dispatch': dispatch,
            },
            'model',
            ('image',),
        )
        if settings.weighting == FULL_SOFTMAX or (settings.weighting == SOFTMAX and top_k == 1):
            raise MoEConfigError(
                f'model.weighting={settings.weighting!r} with top_k={top_k}: weights that sum to less than 1 would '
                'shrink boxes'
            )
        seen = range(count) if gate_sees is None else _numbers('gate_sees', gate_sees, count)
        channels = sum(_last_channels(built[number], self.names[number]) for number in seen)
        self.bbox_head = mixed_head(built, settings, seen, channels, classwise)
        if test_cfg is not None:
            self.bbox_head.test_cfg = test_cfg
        self.train_cfg, self.test_cfg = self.bbox_head.train_cfg, self.bbox_head.test_cfg
        in_evaluation = None
        if forced is not None:
            in_evaluation = Intervention(
                forced=_numbers('forced', [forced] if isinstance(forced, int) else forced, count)
            )
        if test_top_k is not None:
            if classwise or forced is not None:
                other = 'classwise=True' if classwise else f'forced={forced!r}'
                raise MoEConfigError(
                    f'model.test_top_k={test_top_k!r}: does not go with {other}, which names those run'
                )
            if not is_integer(test_top_k, 1) or test_top_k > count:
                raise MoEConfigError(f'model.test_top_k={test_top_k!r}: expected from 1 to {count}')
            in_evaluation = Intervention(top_k=test_top_k)
        for router in self.bbox_head.routers.values():
            router.in_evaluation = in_evaluation

    @property
    def experts(self) -> list[DetectorExpert]:
        """The detectors."""
        return list(self.bbox_head.detectors.experts)

    def init_weights(self) -> None:
        """Fills the detectors from their checkpoints; gates keep what they were built with.

        Raises:
            CheckpointError: a file is missing, or does not fit its detector.
        """
        if self.is_init:
            return
        for expert, checkpoint, name in zip(self.experts, self.checkpoints, self.names, strict=True):
            path = check_checkpoint(checkpoint, f'{name}.checkpoint')
            fill_model(expert.detector, state_of(read_checkpoint(path), path), path, name)
        self.is_init = True

    def extract_feat(self, batch_inputs: Tensor) -> BackboneMaps:
        """(N, 3, H, W) -> the images and what the gate sees."""
        seen = self.bbox_head.gate_sees
        maps = (expert.detector.backbone(batch_inputs) if i in seen else None for i, expert in enumerate(self.experts))
        return BackboneMaps(batch_inputs, tuple(maps))


def _model_of(entry: object, where: str) -> dict:
    """The ``model`` of an entry."""
    sources = {'config', 'model'}
    if not isinstance(entry, dict) or len(sources & entry.keys()) != 1 or entry.keys() - sources != {'checkpoint'}:
        raise MoEConfigError(f'{where}={entry!r}: expected a dict with checkpoint and either config or model')
    if not isinstance(entry['checkpoint'], str) or not entry['checkpoint']:
        raise MoEConfigError(f'{where}.checkpoint={entry["checkpoint"]!r}: expected a file')
    if 'model' in entry:
        model = entry['model']
    else:
        try:
            model = read_config(entry['config']).get('model')
        except MoEConfigError as error:
            raise MoEConfigError(f'{where}.config: {error}') from error
    if not isinstance(model, dict) or 'type' not in model:
        raise MoEConfigError(f'{where}: expected the model of a detector, got {model!r}')
    return model


def _numbers(key: str, values: object, count: int) -> tuple[int, ...]:
    """Numbers of detectors."""
    given = list(values) if isinstance(values, (list, tuple, range)) else None
    if not given or not all(is_integer(v, 0) and v < count for v in given) or len(set(given)) < len(given):
        raise MoEConfigError(f'model.{key}={values!r}: expected different numbers of detectors, from 0 to {count - 1}')
    return tuple(given)


def _last_channels(detector: Any, name: str) -> int:
    """Channels of the last map of a detector's backbone."""
    channels = getattr(detector.neck, 'in_channels', None) if detector.with_neck else detector.bbox_head.in_channels
    if not isinstance(channels, (int, list, tuple)):
        raise MoEConfigError(f'{name}: a {type(detector.neck).__name__} does not tell the channels of its inputs')
    return channels if isinstance(channels, int) else channels[-1]
