"""Keeps what the towers of a branch's experts compute in a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..routing.dispatch import Experts, Mixture
from ..routing.experts import ExpertGroup
from ..routing.rows import join_patches


def mutual_distance(features: Tensor, chosen: Tensor) -> Tensor:
    """How far a row's experts are from the mean of its others, 1/K sum_k ||f_k - stopgrad(mean_j f_j)||^2 / C.

    Args:
        features: (R, K, C, H, W).
        chosen: (R, K), False for experts that do not count.

    Returns:
        (R, H, W), in at least fp32; 0 for a row with fewer than two experts.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    shape = (*chosen.shape, 1, 1, 1)
    # not a product with 0, which would pass on a NaN of an expert that was not chosen
    features = torch.where(chosen.view(shape), features, features.new_zeros(()))
    count = chosen.sum(1)
    with torch.no_grad():
        others = (features.sum(1, keepdim=True) - features) / (count - 1).clamp_min(1).view(-1, 1, 1, 1, 1)
    apart = (features - others).square().mean(2) * (chosen & (count > 1)[:, None])[:, :, None, None]
    return apart.sum(1) / count.clamp_min(1)[:, None, None]


class _WithFeatures:
    """Runs an expert and adds the channels of its tower's features to those of its output."""

    def __init__(self, expert: Callable[..., Any]) -> None:
        self.expert = expert

    def __call__(self, x: Tensor) -> Tensor:
        output, features = self.expert(x, with_features=True)
        return torch.cat([output, features.to(output.dtype)], dim=1)


class FeatureGroup(ExpertGroup):
    """A group of towers whose features are kept in training, for a loss between the experts of a row.

    Features travel as channels of the outputs, so that dispatch brings them to their rows.

    Attributes:
        kept: per level (R, K, C, H, W) features and (R, K) whether an expert was chosen, since they were last taken.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: list[tuple[Tensor, Tensor]] = []
        self._mixture_of_outputs: Mixture = self.mixture
        self.mixture = self._keep_and_mix

    def distances(self, maps: Sequence[Tensor], grid: int | None) -> list[Tensor]:
        """Per level (N, H, W), how far experts are from the mean of the others; the features are kept no longer.

        Args:
            maps: per level (N, H, W), of the size of the maps.
            grid: cells per axis where rows are patches.
        """
        kept, self.kept = self.kept, []
        found = [mutual_distance(*of_level) for of_level in kept]
        if grid is None:
            return found
        return [join_patches(d[:, None], m.shape[1], m.shape[2], grid)[:, 0] for d, m in zip(found, maps, strict=True)]

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """As of any group."""
        self.kept = []  # of a forward without a loss
        return super().forward(*args, **kwargs)

    @property
    def _features_are_outputs(self) -> bool:
        expert: Any = self.experts[0]
        return expert.predictor is None

    def runnable(self) -> Experts:
        experts = super().runnable()
        return [_WithFeatures(e) for e in experts] if self.training and not self._features_are_outputs else experts

    def _keep_and_mix(self, outputs: Tensor, log_weights: Tensor, sums_to_one: bool = True) -> Tensor:
        if not self.training:
            return self._mixture_of_outputs(outputs, log_weights, sums_to_one)
        features = outputs
        if not self._features_are_outputs:
            expert: Any = self.experts[0]
            width = expert.feature_channels
            outputs, features = outputs.split([outputs.shape[2] - width, width], dim=2)
        self.kept.append((features, log_weights.detach() > float('-inf')))
        return self._mixture_of_outputs(outputs, log_weights, sums_to_one)
