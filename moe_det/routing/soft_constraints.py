"""Soft constraints: auxiliary losses that keep the experts in use.

All are computed in fp32 over all rows of a step and of all processes. With several balance groups the loss is the
mean over the groups that have rows; with slots the mean over the slots, whose experts are balanced among each other.
Shape letters: G groups, E experts, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import checked_number
from .constraint import Constraint
from .distributed import sum_over_ranks
from .routing import Routing

EPSILON = 1e-10  # of the code of arXiv 2204.10598, against division by zero and log(0)


def in_slots(values: Tensor, routing: Routing) -> Tensor:
    """(..., E) values of the experts as (..., S, E / S); S is 1 where experts have no slots."""
    return values.unflatten(-1, (routing.slots, -1))


class SoftConstraint(Constraint):
    """Base of the soft constraints; a subclass computes one value per balance group.

    Args:
        weight: factor of the loss, >= 0.
    """

    learned_noise = True
    scheduled = True
    default_weight = 1.0

    def __init__(self, weight: float | None = None) -> None:
        super().__init__()
        self.weight = checked_number('weight', self.default_weight if weight is None else weight)

    def extra_repr(self) -> str:
        return f'weight={self.weight:g}'

    def loss(self, routing: Routing) -> Tensor:
        values = self.group_values(routing)
        filled = (routing.usage.rows > 0).to(values.dtype)
        return self.weight * (values * filled).sum() / filled.sum().clamp_min(1)

    def group_values(self, routing: Routing) -> Tensor:
        """(G,) unweighted loss of each group; any finite value where the group has no rows."""
        raise NotImplementedError(f'{type(self).__name__} does not define group_values()')


class ImportanceConstraint(SoftConstraint):
    """Squared coefficient of variation of the importance, Var(I) / (Mean(I)^2 + 1e-10), unbiased variance.

    Source: arXiv 2204.10598 (after Shazeer et al., arXiv 1701.06538, eq. 6); weight 0.5 there.

    Args:
        weight: factor of the loss, >= 0.
        dense: sum the probabilities of all experts, as arXiv 2302.14703 does, instead of the weights of the chosen
            ones; the two agree where every expert is mixed.
    """

    key = 'importance'
    default_weight = 0.5

    def __init__(self, weight: float | None = None, dense: bool = False) -> None:
        super().__init__(weight)
        if not isinstance(dense, bool):
            raise ValueError(f'dense={dense!r}: expected True or False')
        self.dense = dense

    def group_values(self, routing: Routing) -> Tensor:
        importance = in_slots(routing.usage.probs if self.dense else routing.usage.importance, routing)
        if importance.shape[2] == 1:  # the variance of a single expert is undefined; it is always balanced
            return importance.sum((1, 2)) * 0
        return (importance.var(dim=2, unbiased=True) / (importance.mean(dim=2) ** 2 + EPSILON)).mean(1)


class KLConstraint(SoftConstraint):
    """KL divergence of the importance from the uniform distribution, sum_i P_i log(P_i E), in [0, log E].

    P_i = I_i / sum_j I_j. Source: arXiv 2204.10598; weight 0.5 for CIFAR-100 and 0.25 for COCO there.
    """

    key = 'kl'
    default_weight = 0.25

    def group_values(self, routing: Routing) -> Tensor:
        importance = in_slots(routing.usage.importance, routing)
        share = importance / importance.sum(2, keepdim=True).clamp_min(EPSILON)
        # the clamp keeps value and gradient finite at zero importance
        return (share * torch.log(share.clamp_min(EPSILON) * importance.shape[2])).sum(2).mean(1)


class SwitchConstraint(SoftConstraint):
    """E sum_i f_i P_i with f_i the share of choices that fell on expert i and P_i its mean probability.

    1 when balanced. The gradient flows through P alone. Source: Switch Transformer, arXiv 2101.03961, eq. 4.
    """

    key = 'switch'
    default_weight = 0.01

    def group_values(self, routing: Routing) -> Tensor:
        usage = routing.usage
        share = usage.load / usage.load.sum(1, keepdim=True).clamp_min(1)
        mean_probs = usage.probs / usage.rows.clamp_min(1)[:, None]
        return routing.num_experts * (share * mean_probs).sum(1)


class EntropyConstraint(SoftConstraint):
    """H_s - H_u in nats: the mean entropy of a row's probabilities minus the entropy of the mean probabilities.

    Low when each row decides sharply and all experts are used alike; in [-log E, 0]. Source: arXiv 2509.05086;
    H_s and H_u as in arXiv 2302.14703 (there in bits).
    """

    key = 'entropy'
    default_weight = 0.5

    def group_values(self, routing: Routing) -> Tensor:
        usage = routing.usage
        rows = usage.rows.clamp_min(1)
        mean_probs = usage.probs / rows[:, None]
        batch_entropy = -(mean_probs * torch.log(mean_probs.clamp_min(EPSILON))).sum(1)
        return usage.entropy / rows - batch_entropy


class ZLossConstraint(SoftConstraint):
    """Mean over rows of (log sum_i exp h_i)^2: keeps gate logits small. Source: ST-MoE, arXiv 2202.08906, eq. 5.

    It does not balance the experts; combine it with another constraint.
    """

    key = 'z'
    default_weight = 1e-3

    def group_values(self, routing: Routing) -> Tensor:
        squared = (torch.logsumexp(in_slots(routing.logits, routing), dim=2) ** 2).mean(1)
        groups = torch.arange(routing.num_groups, device=squared.device)
        member = (routing.groups[:, None] == groups).to(squared.dtype)
        return sum_over_ranks(member.t() @ squared) / routing.usage.rows.clamp_min(1)


class UsageEntropyConstraint(SoftConstraint):
    """usage * E sum_i (P_i - 1/E)^2 + entropy * H_s, with P_i the mean probability of expert i over the rows.

    The first term keeps all experts in use, the second makes each row decide for one, H_s being the mean entropy of a
    row's probabilities in nats. Source: the published code of SMoE-VAE, arXiv 2509.10025, with 200 and 400 for terms of
    a batch beside a reconstruction error that is summed over the batch.

    Args:
        weight: factor of the loss, >= 0.
        usage: factor of the first term, >= 0.
        entropy: factor of the second term, >= 0.
    """

    key = 'usage_entropy'

    def __init__(self, weight: float | None = None, usage: float = 200.0, entropy: float = 400.0) -> None:
        super().__init__(weight)
        self.usage = checked_number('usage', usage)
        self.entropy = checked_number('entropy', entropy)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, usage={self.usage:g}, entropy={self.entropy:g}'

    def group_values(self, routing: Routing) -> Tensor:
        rows = routing.usage.rows.clamp_min(1)
        mean_probs = routing.usage.probs / rows[:, None]
        apart = routing.num_experts * ((mean_probs - 1 / routing.num_experts) ** 2).sum(1)
        return self.usage * apart + self.entropy * routing.usage.entropy / rows
