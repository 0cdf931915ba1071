"""Utilisation of a table of routing rows."""

from __future__ import annotations

import numpy as np
import torch

from ..routing.metrics import utilisation
from ..routing.routing import Usage


def usage_of_rows(weights: np.ndarray, probs: np.ndarray) -> dict:
    """Load, importance, living experts and entropies over routing rows.

    Args:
        weights: (R, E) mixture weights.
        probs: (R, E) gate probabilities.

    Returns:
        Fields of :class:`~moe_det.routing.metrics.Utilisation`.
    """
    weights, probs = (torch.as_tensor(values, dtype=torch.float64) for values in (weights, probs))
    usage = Usage(
        importance=weights.sum(0)[None],
        load=(weights > 0).sum(0)[None].double(),
        probs=probs.sum(0)[None],
        entropy=torch.special.entr(probs).sum()[None],
        rows=torch.tensor([float(len(weights))]),
    )
    return {name: list(v) if isinstance(v, tuple) else v for name, v in utilisation(usage).to_dict().items()}
