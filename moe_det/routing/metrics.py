"""Utilisation of a layer's experts: from sums over rows to the numbers that logs and tables show."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .routing import Usage

LIVING_SHARE = 0.01  # an expert is living if it holds more than 1 % of the weights (arXiv 2204.10598)


@dataclass(frozen=True)
class Utilisation:
    """How a layer's experts were used over some rows.

    Attributes:
        importance_share: per expert, its part of all weights; sums to 1.
        load_ratio: per expert, rows that chose it over the fair share; 1.0 is fair.
        living: experts with more than 1 % of the weights.
        row_entropy: H_s, mean entropy of a row's probabilities in bits; low when decisions are sharp.
        batch_entropy: H_u, entropy of the mean probabilities in bits; log2(E) when all are used alike.
        rows: number of rows.
    """

    importance_share: tuple[float, ...]
    load_ratio: tuple[float, ...]
    living: int
    row_entropy: float
    batch_entropy: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON."""
        return asdict(self)


def utilisation(usage: Usage) -> Utilisation:
    """Turns summed usage, over all balance groups, into numbers; copies a few values to the host once.

    Args:
        usage: sums as :class:`~moe_det.routing.routing.Usage` holds them.

    Raises:
        ValueError: there were no rows.
    """
    columns = [usage.importance.sum(0), usage.load.sum(0), usage.probs.sum(0)]
    tail = torch.stack([usage.entropy.sum(), usage.rows.sum()])
    numbers = torch.cat([*columns, tail]).double().tolist()
    experts = usage.importance.shape[1]
    importance, load, probs = (numbers[i * experts : (i + 1) * experts] for i in range(3))
    entropy, rows = numbers[-2:]
    if rows == 0:
        raise ValueError('no routing rows to measure')
    total_importance = max(sum(importance), 1e-30)
    fair_load = max(sum(load) / experts, 1e-30)
    share = tuple(value / total_importance for value in importance)
    mean_probs = [value / rows for value in probs]
    return Utilisation(
        importance_share=share,
        load_ratio=tuple(value / fair_load for value in load),
        living=sum(value > LIVING_SHARE for value in share),
        row_entropy=entropy / rows / math.log(2),
        batch_entropy=-sum(p * math.log2(p) for p in mean_probs if p > 0),
        rows=round(rows),
    )
