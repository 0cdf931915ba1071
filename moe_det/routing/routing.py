"""The routing of a batch of rows: from gate logits to chosen experts and their weights.

Shape letters: R rows, E experts, K chosen, G balance groups.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .distributed import sum_over_ranks
from .samples import RowSamples
from .selection import log_probabilities


@dataclass(frozen=True)
class Usage:
    """How much each expert was used, summed over rows and processes.

    Attributes:
        importance: (G, E) sum of an expert's weights, with gradient.
        load: (G, E) number of rows that chose it.
        probs: (G, E) sum of its probabilities, with gradient.
        entropy: (G,) sum over rows of the entropy of the row's probabilities in nats, with gradient.
        rows: (G,) number of rows.
    """

    importance: Tensor
    load: Tensor
    probs: Tensor
    entropy: Tensor
    rows: Tensor

    def detached(self) -> Usage:
        """The same sums without gradient, over all balance groups: (1, E) and (1,)."""
        return Usage(*(value.sum(0, keepdim=True) for value in vars(self.without_gradient()).values()))

    def without_gradient(self) -> Usage:
        """The same sums without gradient."""
        return Usage(*(value.detach() for value in vars(self).values()))

    def to(self, device: torch.device) -> Usage:
        """The same sums on a device."""
        return Usage(*(value.to(device) for value in vars(self).values()))

    def __add__(self, other: Usage) -> Usage:
        names = [f.name for f in dataclasses.fields(self)]
        return Usage(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass
class Routing:
    """The decision for a batch of rows.

    Attributes:
        logits: (R, E) gate logits, learned noise included.
        indices: (R, K) chosen experts, best first; E stands for *no expert* (fewer than K were allowed).
        log_weights: (R, K) logarithm of the mixture weights; -inf where no expert was chosen.
        sums_to_one: whether a row's weights sum to 1 (in each slot), or to less (full softmax).
        groups: (R,) balance group of each row.
        num_groups: G.
        samples: what constraints asked to know of each row.
        slots: groups of experts of which each row runs one; see :mod:`moe_det.routing.selection`. With several,
            column s of ``indices`` is the choice of slot s, and every weight is 1.
    """

    logits: Tensor
    indices: Tensor
    log_weights: Tensor
    sums_to_one: bool
    groups: Tensor
    num_groups: int
    samples: RowSamples | None = None
    slots: int = 1

    @functools.cached_property
    def log_probs(self) -> Tensor:
        """(R, E) logarithm of the probabilities."""
        return log_probabilities(self.logits, self.slots)

    @property
    def probs(self) -> Tensor:
        """(R, E) softmax over all experts, or inside each slot over their number; a row sums to 1."""
        return self.log_probs.exp()

    @functools.cached_property
    def weights(self) -> Tensor:
        """(R, K) mixture weights; exactly 0 where no expert was chosen."""
        return self.log_weights.exp()

    @property
    def num_experts(self) -> int:
        """E."""
        return self.logits.shape[1]

    def over_experts(self, values: Tensor, fill: float) -> Tensor:
        """Spreads (R, K) values of the chosen experts over (R, E), with ``fill`` elsewhere."""
        spread = values.new_full((len(values), self.num_experts + 1), fill)
        return spread.scatter(1, self.indices, values)[:, : self.num_experts]

    @functools.cached_property
    def usage(self) -> Usage:
        """Sums over rows and processes, with one communication for all of them."""
        return self._sums(sum_over_ranks)

    def local_usage(self) -> Usage:
        """Sums over the rows of this process alone."""
        return self._sums(lambda sums: sums)

    def _sums(self, reduce: Callable[[Tensor], Tensor]) -> Usage:
        experts = self.num_experts
        entropy = -(self.probs * self.log_probs).sum(1, keepdim=True)
        chosen = self.over_experts(torch.ones_like(self.weights.detach()), 0.0)
        columns = torch.cat(
            [self.over_experts(self.weights, 0.0), chosen, self.probs, entropy, torch.ones_like(entropy)], dim=1
        )
        groups = torch.arange(self.num_groups, device=self.groups.device)
        member = (self.groups[:, None] == groups).to(columns.dtype)
        sums = reduce(member.t() @ columns)
        importance, load, probs, entropy_sum, rows = sums.split([experts, experts, experts, 1, 1], dim=1)
        return Usage(importance, load.detach(), probs, entropy_sum[:, 0], rows[:, 0].detach())

    def only(self, counted: Tensor) -> Routing:
        """The decision for the rows where ``counted``, (R,) on the CPU, is True, without samples."""
        rows = counted.nonzero()[:, 0].to(self.logits.device)
        names = ('logits', 'indices', 'log_weights', 'groups')
        return dataclasses.replace(self, samples=None, **{name: getattr(self, name)[rows] for name in names})

    def with_usage(self, usage: Usage) -> Routing:
        """The same decision, whose :attr:`usage` is another one."""
        changed = dataclasses.replace(self)
        changed.__dict__['usage'] = usage
        return changed

    @staticmethod
    def concatenate(parts: list[Routing]) -> Routing:
        """Joins the routings of the calls of one step, so that they are balanced together."""
        if len(parts) == 1:
            return parts[0]
        return Routing(
            logits=torch.cat([p.logits for p in parts]),
            indices=torch.cat([p.indices for p in parts]),
            log_weights=torch.cat([p.log_weights for p in parts]),
            sums_to_one=parts[0].sums_to_one,
            groups=torch.cat([p.groups for p in parts]),
            num_groups=max(p.num_groups for p in parts),
            samples=RowSamples.concatenate([p.samples for p in parts]),
            slots=parts[0].slots,
        )

    @staticmethod
    def without_rows(
        like: Tensor, num_experts: int, top_k: int, sums_to_one: bool, num_groups: int, slots: int = 1
    ) -> Routing:
        """The routing of a step in which a layer got no rows; device and precision as ``like``, at least fp32."""
        logits = like.new_zeros(0, num_experts, dtype=torch.promote_types(like.dtype, torch.float32))
        empty = torch.zeros(0, dtype=torch.long, device=like.device)
        indices = empty.new_zeros(0, top_k)
        return Routing(logits, indices, logits[:, :top_k], sums_to_one, empty, num_groups, slots=slots)
