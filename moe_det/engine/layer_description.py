"""What a report says about the MoE layers and the pyramid levels of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from ..analysis.inputs import LayerInfo
from ..errors import MoEConfigError
from ..probing.findings import Findings
from ..routing.router import find_routers


def layer_infos(model: nn.Module, chosen: Sequence[str] | None = None) -> list[LayerInfo]:
    """Describes the MoE layers of a model that have a gate.

    Raises:
        MoEConfigError: the model has no layer of a name in ``chosen``.
    """
    routers = find_routers(model)
    for name in chosen or ():
        if name not in routers:
            raise MoEConfigError(f'--layers {name}: the model has the MoE layers {", ".join(routers)}')
    grids = {}
    for path, module in model.named_modules():
        settings = getattr(module, 'settings', None)
        if settings is not None and getattr(settings, 'unit', None) == 'patch':
            grids |= {name: settings.grid for name in routers if name == path or name.startswith(f'{path}.')}
    return [
        LayerInfo(
            name=name,
            unit=router.unit,
            grid=grids.get(name),
            num_experts=router.num_experts,
            top_k=router.top_k,
            balance_over='level' if router.num_groups > 1 else 'all',
            constraints=tuple(router.constraints),
            slots=router.slots,
        )
        for name, router in routers.items()
        if chosen is None or name in chosen
    ]


def pyramid_levels(model: nn.Module, findings: Findings) -> list[dict]:
    """The levels of a dense head: index, name (P3, ...), stride in pixels, number of detections from it."""
    head = getattr(model, 'bbox_head', None)
    strides = getattr(getattr(head, 'prior_generator', None), 'strides', None)
    if strides is None:
        return []
    counts = np.bincount(findings.detection_levels[findings.detection_levels >= 0], minlength=len(strides))
    levels = []
    for index, stride in enumerate(strides):
        pixels = int(stride[0] if isinstance(stride, (tuple, list)) else stride)
        name = f'P{pixels.bit_length() - 1}' if pixels & (pixels - 1) == 0 else f'level {index}'
        levels.append({'index': index, 'name': name, 'stride': pixels, 'detections': int(counts[index])})
    return levels
