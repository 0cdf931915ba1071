"""Hard constraints: over-used experts are forbidden or made less likely; no auxiliary loss, no gate noise.

State is kept per balance group in persistent buffers, so that a resumed run continues where it stopped. It moves once
per training step, from the importance or load summed over all rows of the step and all processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import checked_number
from .constraint import Constraint
from .routing import Routing


class HardConstraint(Constraint):
    """Base of the hard constraints."""

    learned_noise = False

    def _state(self, name: str, *shape: int) -> None:
        self.register_buffer(name, torch.zeros(*shape), persistent=True)


class ThresholdConstraint(HardConstraint):
    """Base of the constraints that forbid, while training, the experts whose ``excess`` is above ``threshold``.

    Args:
        threshold: largest allowed excess, >= 0.
    """

    default_threshold = 0.3

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self.threshold = checked_number('threshold', self.default_threshold if threshold is None else threshold)

    def extra_repr(self) -> str:
        return f'threshold={self.threshold:g}'

    def excess(self) -> Tensor:
        """(G, E) how far each expert lies above its fair share."""
        raise NotImplementedError(f'{type(self).__name__} does not define excess()')

    def mask(self, logits: Tensor, groups: Tensor) -> Tensor:
        if not self.training:  # arXiv 2204.10598: the constraint acts in training only
            return logits
        return logits.masked_fill((self.excess() > self.threshold)[groups], float('-inf'))


class RelativeImportanceConstraint(ThresholdConstraint):
    """Relative importance: r_i <- r_i + (I_i - Ibar) / Ibar; expert i is forbidden while r_i > threshold.

    r sums to 0, so at least one expert is always allowed. It is an integrator: it forces equal use in the long run.
    Source: arXiv 2204.10598; threshold 0.3 for COCO and 0.5 for CIFAR-100 there.
    """

    key = 'relative_importance'
    default_threshold = 0.3
    relative: Tensor

    def prepare(self, num_experts: int, num_groups: int) -> None:
        self._state('relative', num_groups, num_experts)

    def excess(self) -> Tensor:
        return self.relative

    @torch.no_grad()
    def update(self, routing: Routing) -> None:
        importance = routing.usage.importance.detach()
        fair = importance.mean(dim=1, keepdim=True)
        step = torch.where(fair > 0, (importance - fair) / fair.clamp_min(1e-10), 0.0)
        self.relative[: len(step)] += step.to(self.relative.dtype)

    @torch.no_grad()
    def after_dropping_experts(self) -> None:
        of_slots = self.relative.unflatten(1, (self.slots, -1))
        of_slots -= of_slots.mean(dim=2, keepdim=True)  # the sum is 0, else all could be forbidden for good


class MeanImportanceConstraint(ThresholdConstraint):
    """Mean importance: m_i <- (t m_i + I_i / sum_j I_j) / (t + 1); expert i is forbidden while m_i - 1/E > threshold.

    A slow running average that only clips gross domination; with slots of the expert's share in its slot. Source:
    arXiv 2204.10598 ("absolute" in its code); threshold 0.3 there.
    """

    key = 'mean_importance'
    default_threshold = 0.3
    mean: Tensor
    steps: Tensor

    def prepare(self, num_experts: int, num_groups: int) -> None:
        self._state('mean', num_groups, num_experts)
        self._state('steps', num_groups)

    def excess(self) -> Tensor:
        return (self.mean - 1 / self.mean.shape[1]) * self.slots  # of the slot's own share

    @torch.no_grad()
    def update(self, routing: Routing) -> None:
        importance = routing.usage.importance.detach().to(self.mean.dtype)
        total = importance.sum(dim=1, keepdim=True)
        seen = total > 0
        mean, steps = self.mean[: len(total)], self.steps[: len(total), None]
        moved = (steps * mean + importance / total.clamp_min(1e-10)) / (steps + 1)
        self.mean[: len(total)] = torch.where(seen, moved, mean)
        self.steps[: len(total)] += seen[:, 0].to(self.steps.dtype)

    @torch.no_grad()
    def after_dropping_experts(self) -> None:
        of_slots = self.mean.unflatten(1, (self.slots, -1))
        total = of_slots.sum(dim=2, keepdim=True) * self.slots
        rest = torch.where(total > 0, of_slots / total.clamp_min(1e-10), 1 / self.mean.shape[1]).flatten(1)
        self.mean.copy_(torch.where(self.steps[:, None] > 0, rest, self.mean))  # shares of one step sum to 1


class SelectionBiasConstraint(HardConstraint):
    """A bias per expert that moves the choice, never the weights: b_i <- b_i + rate * sign(mean load - load_i).

    Acts in evaluation too, because the experts were trained on rows chosen with it. Source: DeepSeek-V3,
    arXiv 2412.19437, section 2.1.2 (auxiliary-loss-free load balancing).

    Args:
        rate: step of the bias, >= 0.
    """

    key = 'selection_bias'
    bias: Tensor

    def __init__(self, rate: float = 1e-3) -> None:
        super().__init__()
        self.rate = checked_number('rate', rate)

    def extra_repr(self) -> str:
        return f'rate={self.rate:g}'

    def prepare(self, num_experts: int, num_groups: int) -> None:
        self._state('bias', num_groups, num_experts)

    def mask(self, logits: Tensor, groups: Tensor) -> Tensor:
        return logits + self.bias[groups].to(logits.dtype)

    @torch.no_grad()
    def update(self, routing: Routing) -> None:
        load = routing.usage.load
        direction = torch.sign(load.mean(dim=1, keepdim=True) - load)
        self.bias[: len(load)] += self.rate * direction.to(self.bias.dtype)
