"""The plain model that a config with experts would have been."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

_PLAIN = {'MoERetinaHead': 'RetinaHead', 'MoEResNet': 'ResNet', 'FrozenFPN': 'FPN'}


def dense_counterpart(model: Mapping) -> tuple[dict, list[str]]:
    """Takes the experts out of a model's config.

    ``MoERetinaHead`` and ``MoEResNet`` become mmdet's own, ``MoEConv2d`` and ``MuConv2d`` plain convolutions, and a
    ``MoEBlock``, which is added to a network and replaces nothing, goes; a ``MixtureClassifier`` keeps one expert, and
    ``WithExperts`` becomes its detector, ``WithClusters`` its model. All other keys stay.

    Args:
        model: the ``model`` of a config; it is not changed.

    Returns:
        The changed copy and one phrase for each change, such as ``'bbox_head: RetinaHead in place of MoERetinaHead'``;
        no phrase, no experts of this package.
    """
    changes: list[str] = []
    return _without_experts(copy.deepcopy(model), '', changes), changes


def type_name(value: object) -> str:
    """Name of a config's class: ``type`` may be a text, with or without a scope, or the class itself."""
    kind = value.get('type') if isinstance(value, Mapping) else None
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def _without_experts(node: Any, path: str, changes: list[str]) -> Any:
    if isinstance(node, (list, tuple)):
        return type(node)(_without_experts(item, f'{path}.{i}', changes) for i, item in enumerate(node))
    if not isinstance(node, dict):
        return node
    if type_name(node) == 'WithClusters':
        node['type'] = node.pop('model')
    name = type_name(node)
    if name == 'MoEResNet' and node.pop('small_images', False):
        node['type'] = 'SmallImageResNet'
        node.pop('moe', None)
        changes.append(f'{path or "model"}: SmallImageResNet in place of MoEResNet')
    elif name == 'WithExperts':
        node['type'] = node.pop('detector')
        node.pop('experts', None)
        changes.append(f'{path or "model"}: {type_name(node)} without experts')
    elif name == 'MixtureClassifier' and isinstance(node.get('moe'), dict) and node['moe'].get('num_experts', 4) > 1:
        node['moe'].update(num_experts=1, top_k=1, constraint=None)
        changes.append(f'{path or "model"}: one expert without a gate')
    elif name in _PLAIN:
        node['type'] = _PLAIN[name]
        if name != 'FrozenFPN':  # a pyramid that does not learn has no experts
            node.pop('moe', None)
            changes.append(f'{path or "model"}: {_PLAIN[name]} in place of {name}')
    conv = type_name(node.get('conv_cfg'))
    if conv in ('MoEConv2d', 'MuConv2d'):
        node['conv_cfg'] = None
        changes.append(f'{path}: plain convolutions in place of {conv}'.lstrip(': '))
    if isinstance(node.get('plugins'), (list, tuple)):
        kept = [plugin for plugin in node['plugins'] if type_name(plugin.get('cfg')) != 'MoEBlock']
        if len(kept) < len(node['plugins']):
            node['plugins'] = kept or None
            changes.append(f'{path}: no MoEBlock'.lstrip(': '))
    for key, value in node.items():
        node[key] = _without_experts(value, f'{path}.{key}'.lstrip('.'), changes)
    return node
