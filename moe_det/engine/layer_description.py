"""What a report says about the MoE layers and the pyramid levels of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import nn

from ..analysis.inputs import LayerInfo
from ..errors import MoEConfigError
from ..probing.findings import Findings
from ..routing.router import Router, find_routers
from ..routing.tokens import TOKEN


def layer_infos(model: nn.Module, chosen: Sequence[str] | None = None) -> list[LayerInfo]:
    """Describes the MoE layers of a model that have a gate.

    Raises:
        MoEConfigError: the model has no layer of a name in ``chosen``, or one of them decides about tokens.
    """
    routers = find_routers(model)
    for name in chosen or ():
        if name not in routers:
            raise MoEConfigError(f'--layers {name}: the model has the MoE layers {", ".join(routers)}')
    refuse_tokens(routers, chosen or routers, 'size specialisation', '--layers')
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


def refuse_tokens(routers: Mapping[str, Router], chosen: Iterable[str], what: str, option: str = '') -> None:
    """Raises MoEConfigError if a chosen layer decides about tokens, whose place in the image is not known.

    Args:
        routers: of the model, by layer.
        chosen: the layers to look at.
        what: what looks at them, for the message.
        option: how others are chosen, for the message; ``''`` where they cannot be.
    """
    tokens = [name for name in chosen if routers[name].unit == TOKEN]
    if tokens:
        others = [name for name in routers if routers[name].unit != TOKEN]
        hint = f'; choose others with {option}: {", ".join(others)}' if others and option else ''
        raise MoEConfigError(
            f'{", ".join(tokens)}: decides about tokens or queries, which have no place in the image that {what} could '
            f'tell objects by{hint}. How the experts are used router_health.py says'
        )


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
