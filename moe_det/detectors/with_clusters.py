"""Tells routers what cluster each image is of, from what the backbone computes anyway."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import MoEConfigError, unknown_name
from ..routing.cluster_mask import ClusterMask
from ..routing.gates import global_average
from ..routing.router import find_routers


class WithClusters:
    """Builds a model whose frozen backbone tells its ``ClusterMask`` constraints the features of the images.

    The result is the model itself. Lay it over an inherited model, whose other keys stay as they are::

        model = dict(
            type='WithClusters', model='RetinaNet', backbone=dict(frozen_stages=4),
            bbox_head=dict(type='MoERetinaHead', moe=dict(num_experts=8, top_k=1, constraint=[
                dict(type='ClusterMask', clusters=4, file='work_dirs/clusters.json'), dict(type='KLConstraint')])))

    Args:
        model: ``type`` of the model: a detector, ``WithExperts`` or ``ResNetClassifier``.
        **keys: the model's own keys.

    Raises:
        MoEConfigError: an unknown model, no ``ClusterMask`` in it, or a backbone that is missing or trained.
    """

    def __new__(cls, *, model: str | type, **keys) -> Any:
        """Builds the model and lets its backbone tell the features."""
        if isinstance(model, str) and MODELS.get(model) is None:
            raise MoEConfigError(f'model.model: {unknown_name("model", model, MODELS.module_dict)}')
        built = MODELS.build({'type': model, **copy.deepcopy(keys)})  # DETR's head changes the dict it is given
        tell_clusters(built)
        return built


class _Tell:
    """Forward hook of the backbone; an object, which a copy of the model has with the copies of its constraints."""

    def __init__(self, masks: Sequence[ClusterMask]) -> None:
        self.masks = list(masks)

    def __call__(self, backbone: nn.Module, inputs: tuple, maps: Sequence[Tensor]) -> None:
        features = global_average(maps[-1].detach())
        for mask in self.masks:
            mask.see(features)


def tell_clusters(model: nn.Module) -> None:
    """Lets a model's backbone tell every ``ClusterMask`` the pooled last map of the images, in place.

    Raises:
        MoEConfigError: as for :class:`WithClusters`.
    """
    constraints = [c for router in find_routers(model).values() for c in router.constraints.values()]
    masks = [constraint for constraint in constraints if isinstance(constraint, ClusterMask)]
    if not masks:
        raise MoEConfigError("model.type='WithClusters': no layer has constraint=dict(type='ClusterMask', ...)")
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        raise MoEConfigError(f"model.type='WithClusters': a {type(model).__name__} has no backbone")
    trained = sum(parameter.requires_grad for parameter in backbone.parameters())
    if trained:
        raise MoEConfigError(
            f'model.backbone: {trained} of its parameters would be trained, and clusters are of features that stay; '
            'set frozen_stages=4'
        )
    backbone.register_forward_hook(_Tell(masks))
