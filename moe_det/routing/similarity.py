"""Soft constraint that sends similar samples to the same expert and distant ones to different experts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import checked_number
from .distributed import gather_over_ranks
from .routing import Routing
from .samples import FEATURES
from .soft_constraints import SoftConstraint

DISTANCES = (FEATURES, 'inputs', 'box_sizes')
NORMALISATIONS = ('pairs', 'published')
DISTANCE_SCALES = ('largest', 'none')


def pairwise_distances(points: Tensor) -> Tensor:
    """(P, P) Euclidean distances of (P, D) points, by one matrix product; 0 on the diagonal.

    The points are centred first: the product loses the digits that a common offset takes.
    """
    points = points - points.mean(0)
    squares = (points * points).sum(1)
    squared = squares[:, None] + squares - 2 * points @ points.t()
    return squared.clamp_min(0).fill_diagonal_(0).sqrt()


class SampleSimilarityConstraint(SoftConstraint):
    """Sample similarity: rows far apart should go to different experts (arXiv 2302.14703, regulariser L_s).

    With p(e|a) the probability of expert e for row a and D_ab the distance of rows a and b over the largest one:
    P_same = 1/E sum_e sum_ab p(e|a) p(e|b) D_ab, P_diff = 1/(E^2 - E) sum_{e != f} sum_ab p(e|a) p(f|b) D_ab, and
    the loss is (beta_s P_same - beta_d P_diff) / N^2 over the N rows of a balance group. As probabilities sum to 1,
    one matrix product S = P P^T gives both: sum_ab D_ab (beta_s S_ab / E - beta_d (1 - S_ab) / (E^2 - E)) / N^2.
    Only rows of one balance group make pairs (``balance_over='level'``: rows of one level). In a distributed run they
    are the rows of all processes.

    Args:
        beta_s: factor of P_same, >= 0.
        beta_d: factor of P_diff, >= 0.
        distance: what D is measured on: ``features`` (pooled features of the row, without gradient), ``box_sizes``
            (how many objects of which size the row's image or patch has; ``MoERetinaHead`` takes them from the ground
            truth, in training alone) or
            ``inputs`` (what the caller gives to ``Router.supply('inputs', ...)``, such as the images' pixels).
        normalisation: ``pairs`` divides both terms by N^2; ``published`` divides P_diff alone, as the paper's
            published code does: its beta_s is N^2 times stronger.
        distance_scale: ``largest`` measures D in units of the largest distance of the balance group; ``none`` takes
            distances as they are, as the published code did when the paper's MNIST results were made: some 50 times
            stronger for normalised MNIST images, whose largest distance in a batch of 512 is about that.
        weight: factor of the loss, >= 0.

    Raises:
        ValueError: a factor below 0, or an unknown distance, normalisation or distance_scale.
    """

    key = 'similarity'
    default_weight = 1.0
    samples: str

    def __init__(
        self,
        beta_s: float = 0.5,
        beta_d: float = 0.5,
        distance: str = FEATURES,
        normalisation: str = 'pairs',
        distance_scale: str = 'largest',
        weight: float | None = None,
    ) -> None:
        super().__init__(weight)
        self.beta_s = checked_number('beta_s', beta_s)
        self.beta_d = checked_number('beta_d', beta_d)
        for key, value, known in (
            ('distance', distance, DISTANCES),
            ('normalisation', normalisation, NORMALISATIONS),
            ('distance_scale', distance_scale, DISTANCE_SCALES),
        ):
            if value not in known:
                raise ValueError(f'{key}={value!r}: expected one of {", ".join(known)}')
        self.samples = distance
        self.normalisation = normalisation
        self.distance_scale = distance_scale

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, beta_s={self.beta_s:g}, beta_d={self.beta_d:g}, distance={self.samples!r}'

    def group_values(self, routing: Routing) -> Tensor:
        probs, groups, distances = self._rows_of_all_ranks(routing)
        num_groups, experts = routing.num_groups, routing.num_experts // routing.slots
        if not len(probs):
            return routing.logits.sum() * 0 + probs.new_zeros(num_groups)
        distances = distances.masked_fill(groups[:, None] != groups, 0)
        if self.distance_scale == 'largest':
            largest = probs.new_zeros(num_groups).scatter_reduce(0, groups, distances.amax(1), 'amax')
            # no distance at all (one row, equal rows): the quotient is 0, not NaN
            distances = distances / largest.clamp_min(torch.finfo(probs.dtype).tiny)[groups, None]
        same = routing.slots * (probs @ probs.t())  # the mean over slots of what each gives
        pairs = max(experts**2 - experts, 1)
        # summed per row first, so that rows of a group are added up without a loop over groups
        terms = torch.stack([(distances * same).sum(1) / experts, (distances * (1 - same)).sum(1) / pairs])
        p_same, p_diff = probs.new_zeros(2, num_groups).index_add(1, groups, terms)
        count = probs.new_zeros(num_groups).index_add(0, groups, torch.ones_like(distances[0])).clamp_min(1)
        if self.normalisation == 'pairs':
            p_same = p_same / count**2
        return self.beta_s * p_same - self.beta_d * p_diff / count**2

    def _rows_of_all_ranks(self, routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities (R, E) with gradient, groups (R,) and distances (R, R) of the rows of all processes."""
        probs = routing.probs
        if routing.samples is None:  # this process had no rows
            points, index = probs.new_zeros(0, 0), routing.groups
        else:
            try:
                points, index = routing.samples.points(self.samples)
            except ValueError as error:
                raise ValueError(f'{type(self).__name__}(distance={self.samples!r}): {error}') from None
        points, first = gather_over_ranks(points.to(probs))
        # one exchange for all that belongs to a row: small whole numbers are exact as floats
        columns = torch.stack([routing.groups, index + first], dim=1).to(probs.dtype)
        columns, _ = gather_over_ranks(torch.cat([probs, columns], dim=1))
        probs, numbers = columns[:, :-2], columns[:, -2:].detach().long()
        groups, index = numbers.unbind(1)
        distances = pairwise_distances(points) if len(points) else points.new_zeros(0, 0)
        return probs, groups, distances[index[:, None], index]
