"""A group of experts for each cluster of images: the first of two decisions, which no training can collapse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..called import command
from ..checks import is_integer
from ..errors import CheckpointError, DataError, MoEConfigError
from .constraint import FORBIDDEN
from .hard_constraints import HardConstraint
from .rows import RowLayout


def read_centroids(path: str | Path) -> Tensor:
    """The (C, D) centroids of a file of clusters.

    Raises:
        DataError: the file cannot be read or has no centroids.
    """
    try:
        centroids = torch.tensor(json.loads(Path(path).read_text(encoding='utf-8'))['centroids'])
        if centroids.dim() != 2 or not centroids.is_floating_point():
            raise ValueError(f'shape {tuple(centroids.shape)}')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path}: expected JSON with "centroids", a list of lists of numbers ({error!r})') from error
    return centroids


class ClusterMask(HardConstraint):
    """Opens to every image the group of experts of its cluster; the gate decides inside the group (MoCE).

    The cluster is that of the nearest centroid, by cosine, to the pooled last map of the backbone, which is frozen, in
    training and in evaluation. ``model=dict(type='WithClusters', ...)`` tells the constraint that map, and the command
    ``cluster`` makes the file. Cluster c has the experts c E/C to (c + 1) E/C - 1, with slots the same share of each
    slot's copies. Experts of other groups have probability 0 and are never chosen, whatever other constraints say.

    As a row's weights lie in its group, soft constraints over all experts balance inside the groups: the KL of the
    importance from uniform use is that of the clusters' shares, which no gate can change, plus the mean of the KL
    inside each group. It has a gradient; the published balance, a mean of weights that sum to 1, has none.

    Source: arXiv 2509.10513, there for sequences and adapters. That the features are those of a detector's backbone,
    that one linear gate serves all groups (a row sees the logits of its own alone) and that the experts are the
    layer's own is our choice.

    Args:
        clusters: C, which must divide the number of experts (of each slot); the published script takes 4.
        channels: D of the backbone's last map; 2048 for ResNet-50, 512 for ResNet-18.
        file: JSON of the command ``cluster``. It may be missing where a checkpoint brings the centroids.

    Raises:
        ValueError: a number that is not an integer >= 1.
        DataError: the file cannot be read, or holds other numbers of clusters or channels.
    """

    key = 'cluster'
    centroids: Tensor

    def __init__(self, clusters: int = 4, channels: int = 2048, file: str | None = None) -> None:
        super().__init__()
        for name, value in (('clusters', clusters), ('channels', channels)):
            if not is_integer(value, 1):
                raise ValueError(f'{name}={value!r}: expected an integer >= 1')
        self._state('centroids', clusters, channels)
        self.file, self.is_filled = file, False
        self._clusters: Tensor | None = None
        if file is not None and Path(file).is_file():
            self.fill(read_centroids(file))

    def extra_repr(self) -> str:
        return 'clusters={}, channels={}'.format(*self.centroids.shape)

    def fill(self, centroids: Tensor) -> None:
        """Takes (C, D) centroids.

        Raises:
            DataError: another number of clusters or channels.
        """
        if centroids.shape != self.centroids.shape:
            raise DataError(
                f'ClusterMask: {self.file or "the centroids"}: has {centroids.shape[0]} clusters of '
                f'{centroids.shape[1]} channels, the config clusters={len(self.centroids)} and '
                f'channels={self.centroids.shape[1]}'
            )
        self.centroids.copy_(F.normalize(centroids, dim=1))
        self.is_filled = True

    def prepare(self, num_experts: int, num_groups: int) -> None:
        clusters, copies = len(self.centroids), num_experts // self.slots
        what = f'num_experts={num_experts}' if self.slots == 1 else f'copies={copies}'
        if copies % clusters:
            raise ValueError(f'ClusterMask(clusters={clusters}): {what} cannot be divided into so many groups')
        if self.slots == 1 and self.top_k > copies // clusters:
            raise ValueError(
                f'ClusterMask(clusters={clusters}): top_k={self.top_k}, and a group has {copies // clusters} experts'
            )

    @torch.no_grad()
    def see(self, features: Tensor) -> None:
        """Takes the (N, D) features of the images that are routed next."""
        self._clusters = (F.normalize(features, dim=1).to(self.centroids) @ self.centroids.t()).argmax(1)

    def clusters(self, layout: RowLayout) -> Tensor:
        """(R,) cluster of each row's image.

        Raises:
            CheckpointError: there are no centroids.
            MoEConfigError: nobody told the features of these images.
        """
        if not self.is_filled:
            missing = f'{self.file} is not there' if self.file else 'file is not given'
            raise CheckpointError(
                f'ClusterMask has no centroids: {missing}, and no checkpoint with them was loaded. '
                f'{command("cluster")!r} makes the file from a config and a checkpoint without experts'
            )
        if self._clusters is None or len(self._clusters) != layout.num_images:
            told = 'none' if self._clusters is None else len(self._clusters)
            raise MoEConfigError(
                f'ClusterMask: {layout.num_images} images are routed, and the features of {told} are known; set '
                "model=dict(type='WithClusters', model=...), whose backbone tells them"
            )
        return self._clusters[layout.images().to(self._clusters.device)]

    def restrict(self, logits: Tensor, layout: RowLayout) -> Tensor:
        copies = logits.shape[1] // self.slots
        experts = torch.arange(logits.shape[1], device=logits.device)
        group = experts % copies // (copies // len(self.centroids))
        return logits.masked_fill(group != self.clusters(layout).to(logits.device)[:, None], FORBIDDEN)

    def mask(self, logits: Tensor, groups: Tensor) -> Tensor:
        return logits.masked_fill(logits < FORBIDDEN / 1e6, float('-inf'))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self.is_filled = self.is_filled or f'{prefix}centroids' in state_dict
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args, **kwargs)
