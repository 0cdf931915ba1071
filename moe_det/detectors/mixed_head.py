"""The head of a mixture of detectors: its forward is a gate and whole detectors, all else is the head's own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn

from ..layers.settings import MoESettings
from ..routing.dispatch import mix_chosen, plan_dispatch
from ..routing.experts import ExpertGroup
from ..routing.gates import global_average
from ..routing.router import Router
from ..routing.rows import rows_of
from .geometry import MIXED_OUTPUTS
from .mixed_outputs import OutputForm

WHERE = 'bbox_head'


class BackboneMaps(NamedTuple):
    """What the head of a mixture is given.

    Attributes:
        images: (N, 3, H, W), preprocessed.
        maps: by detector its backbone's maps, None where the gate does not see them and they may not be needed.
    """

    images: Tensor
    maps: tuple[Sequence[Tensor] | None, ...]


class _Batch:
    """The images of the forward that runs; experts are handed numbers of images and look them up here."""

    def __init__(self) -> None:
        self.features: BackboneMaps | None = None
        self.numbers: Tensor | None = None

    def hold(self, features: BackboneMaps) -> Tensor:
        """Returns the numbers of all images, (N, 1, 1, 1)."""
        self.features = features
        self.numbers = torch.arange(len(features.images), device=features.images.device)[:, None, None, None]
        return self.numbers

    def release(self) -> None:
        self.features = self.numbers = None


class DetectorExpert(nn.Module):
    """A detector as an expert: numbers of images -> what its head predicts for them, as rows (R, T).

    Args:
        detector: a single-stage detector.
        number: of the detector in the mixture.
        batch: where its images are.
        form: how outputs lie in a row.
    """

    def __init__(self, detector: nn.Module, number: int, batch: _Batch, form: OutputForm) -> None:
        super().__init__()
        self.detector: Any = detector
        self.number = number
        self._batch, self._form = batch, form

    def forward(self, numbers: Tensor) -> Tensor:
        features = self._batch.features
        assert features is not None  # while the head runs
        whole = numbers is self._batch.numbers

        def of_rows(x: Tensor) -> Tensor:
            return x if whole else x.index_select(0, numbers.flatten())

        known = features.maps[self.number]
        maps = self.detector.backbone(of_rows(features.images)) if known is None else tuple(map(of_rows, known))
        maps = self.detector.neck(maps) if self.detector.with_neck else maps
        return self._form.pack(self.detector.bbox_head(maps))


class DetectorGroup(ExpertGroup):
    """Detectors as experts; no gate asks for what they gave."""

    @staticmethod
    def pool(features: Tensor) -> Tensor:
        return features[:, :0]


class MixedHead(BaseDenseHead):
    """Base of the heads of mixtures, beside the class of the detectors' own heads; see :func:`mixed_head`.

    Attributes:
        routers: one for whole images, or one for boxes and one for each class.
        detectors: the experts.
    """

    settings: MoESettings
    gate_sees: tuple[int, ...]
    routers: dict[str, Router]
    detectors: DetectorGroup

    @property
    def experts_on_features(self) -> list[ExpertGroup]:
        """The groups of experts; what they are given does not depend on any router."""
        return [self.detectors]

    def forward(self, x: BackboneMaps) -> tuple[list[Tensor], ...]:
        """Predicts as the detectors' heads do, from the mixture of what they predict."""
        pooled = [global_average(maps[-1]) for i in self.gate_sees if (maps := x.maps[i]) is not None]
        rows, layout = rows_of([torch.cat(pooled, dim=1)[:, :, None, None]], 'image')
        routings = {name: router(rows, layout) for name, router in self.routers.items()}
        numbers = self._batch.hold(x)
        try:
            if len(routings) > 1:
                return self._form.unpack(self._mixed_by_class(numbers, list(routings.values())))
            (routing,) = routings.values()
            plan = plan_dispatch([routing], layout.level_rows)[0] if self.detectors.dispatch == 'sorted' else None
            return self._form.unpack(self.detectors([numbers], routing, layout, plan)[0])
        finally:
            self._batch.release()

    def _mixed_by_class(self, numbers: Tensor, routings: list) -> Tensor:
        """All detectors run, as every class may choose others."""
        outputs = self.detectors.run_all([numbers])[0][0]  # (N, E, T)
        form, of_boxes, *of_classes = self._form, *routings
        length = form.lengths[0]
        logits = outputs[:, :, :length].unflatten(2, (form.classes, -1)).unbind(2)
        mixed = [mix_chosen(z, r, 0, form.mix_class) for z, r in zip(logits, of_classes, strict=True)]
        return torch.cat([*mixed, mix_chosen(outputs[:, :, length:], of_boxes, 0, form.mix_boxes)], dim=1)


@functools.cache
def _class_for(head: type) -> type:
    return type(
        f'Mixed{head.__name__}', (MixedHead, head), {'__doc__': f'A {head.__name__} of a mixture of detectors.'}
    )


def mixed_head(
    detectors: Sequence[Any], settings: MoESettings, gate_sees: Sequence[int], channels: int, classwise: bool
) -> Any:
    """Makes the head of a mixture from that of the first detector: its losses, assigner and selection of detections.

    Args:
        detectors: of one geometry; they are frozen.
        settings: of gate and constraints.
        gate_sees: numbers of the detectors whose backbones' last maps the gate sees.
        channels: of these maps together.
        classwise: whether each class, and the boxes, have a gate of their own.

    Returns:
        A :class:`MixedHead` that is an instance of the detectors' head as well.
    """
    first = detectors[0].bbox_head
    kind: Any = type(first)
    head = copy.deepcopy(first)
    for name, child in list(head.named_children()):
        if any(True for _ in child.parameters()):  # convolutions: the detectors have them
            delattr(head, name)
    head.__class__ = _class_for(kind)
    names = ['box', *(f'class_{number}' for number in range(first.num_classes))] if classwise else ['image']
    head.settings, head.gate_sees = settings, tuple(gate_sees)
    head._batch = _Batch()
    head._form = OutputForm(MIXED_OUTPUTS[kind.__name__], first.num_classes)
    routers: dict[str, Any] = {
        name: settings.build_router(channels, 'model', label=f'{WHERE}.{name}') for name in names
    }
    head.routers = cast('dict[str, Router]', nn.ModuleDict(routers))
    experts = [DetectorExpert(detector, i, head._batch, head._form) for i, detector in enumerate(detectors)]
    head.detectors = DetectorGroup(experts, mixture=head._form.mix, dispatch=settings.dispatch)
    head.detectors.freeze()
    return head
