"""What a report says about the MoE layers and the pyramid levels of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import nn

from ..analysis.inputs import QUERY, LayerInfo
from ..errors import MoEConfigError
from ..routing.regions import ROI
from ..routing.router import Router, find_routers
from ..routing.tokens import TOKEN
from ..routing.windows import WINDOW
from .findings import Findings
from .queries import makes_queries, query_layers
from .regions import cannot_follow_regions, region_layers
from .tokens import token_layers


def layer_infos(model: nn.Module, chosen: Sequence[str] | None = None) -> list[LayerInfo]:
    """Describes the MoE layers of a model that have a gate.

    Raises:
        MoEConfigError: the model has no layer of a name in ``chosen``, or one of them decides about tokens that are
            neither queries of a decoder nor tokens of an encoder, or about regions of interest that cannot be followed.
    """
    routers = find_routers(model)
    for name in chosen or ():
        if name not in routers:
            raise MoEConfigError(f'--layers {name}: the model has the MoE layers {", ".join(routers)}')
    queries, regions = query_layers(model), region_layers(model)
    lost = [name for name in chosen or routers if routers[name].unit == ROI and name not in regions]
    if lost:
        raise MoEConfigError(
            f'{", ".join(lost)}: decides about regions of interest, which cannot be followed to detections: '
            f'{cannot_follow_regions(model.roi_head) or "they are pooled from several levels at once"}'
        )
    refuse_tokens(
        routers, chosen or routers, 'size specialisation', '--layers', [*queries, *regions, *token_layers(model)]
    )
    grids: dict[str, int | None] = {}
    for path, module in model.named_modules():
        settings = getattr(module, 'settings', None)
        if settings is not None and getattr(settings, 'unit', None) == 'patch':
            grids |= {name: settings.grid for name in routers if name == path or name.startswith(f'{path}.')}
    return [
        LayerInfo(
            name=name,
            unit=QUERY if name in queries else router.unit,
            grid=grids.get(name),
            num_experts=router.num_experts,
            top_k=router.test_top_k,
            balance_over='level' if router.num_groups > 1 else 'all',
            constraints=tuple(router.constraints),
            slots=router.slots,
        )
        for name, router in routers.items()
        if chosen is None or name in chosen
    ]


def refuse_tokens(
    routers: Mapping[str, Router], chosen: Iterable[str], what: str, option: str = '', followed: Sequence[str] = ()
) -> None:
    """Raises MoEConfigError if a chosen layer decides about tokens, or regions, that are not followed to objects.

    Args:
        routers: of the model, by layer.
        chosen: the layers to look at.
        what: what looks at them, for the message.
        option: how others are chosen, for the message; ``''`` where they cannot be.
        followed: layers whose queries or regions are followed to their detections.
    """
    refused = [name for name in routers if routers[name].unit in (TOKEN, WINDOW, ROI) and name not in followed]
    tokens = [name for name in chosen if name in refused]
    if tokens:
        others = [name for name in routers if name not in refused]
        hint = f'; choose others with {option}: {", ".join(others)}' if others and option else ''
        raise MoEConfigError(
            f'{", ".join(tokens)}: decides about tokens, queries or regions, which have no place in the image that '
            f'{what} could tell objects by{hint}. How the experts are used router_health.py says'
        )


def pyramid_levels(model: nn.Module, findings: Findings) -> list[dict]:
    """The levels of a one-stage head: index, name (P3, ...), stride in pixels, number of detections from it.

    Of a head with queries the one that stands for all queries, without stride, and the maps of an encoder's tokens.
    """
    head = getattr(model, 'bbox_head', None) or getattr(model, 'rpn_head', None)
    if makes_queries(head):
        levels = [{'index': 0, 'name': 'all queries', 'stride': None, 'detections': len(findings.detections)}]
        highest = max((int(findings.layers[name].levels.max()) for name in token_layers(model)), default=0)
        return levels + [
            {'index': index, 'name': f'map {index}', 'stride': None, 'detections': 0} for index in range(1, highest + 1)
        ]
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
