"""How often a decision stays when the image changes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np


def best_experts(probs: np.ndarray, slots: int = 1) -> np.ndarray:
    """(R, G) the most probable expert of every slot, numbered inside its slot, of probabilities (R, E)."""
    return probs.reshape(len(probs), slots, -1).argmax(2)


def share_kept(best: np.ndarray, again: np.ndarray) -> float:
    """Share of the choices (R, G) of :func:`best_experts` that are the same; 0 of no rows."""
    return float((best == again).mean()) if best.size else 0.0


@dataclass(frozen=True)
class Agreement:
    """Two decisions about the same rows, compared.

    Attributes:
        rows: number of them.
        same_best: share of rows with the same most probable expert (with slots: of choices of a copy).
        overlap: mean share of the chosen experts that are chosen again.
        divergence: mean KL(p || p') of the gate's probabilities, in bits, over the rows where it is finite; None
            without such rows.
        unbounded: rows where it is not, as a constraint opens other experts to the changed image
            (:class:`~moe_det.routing.cluster_mask.ClusterMask`).
    """

    rows: int
    same_best: float
    overlap: float
    divergence: float | None
    unbounded: int

    def to_dict(self) -> dict[str, float | None]:
        """As plain values."""
        return asdict(self)


@dataclass
class AgreementSums:
    """Sums over batches of what :class:`Agreement` gives the mean of.

    Attributes:
        slots: groups of experts of which every row runs one each.
    """

    slots: int = 1
    rows: int = 0
    same_best: float = 0.0
    overlap: float = 0.0
    divergence: float = 0.0
    unbounded: int = 0

    def add(self, probs: np.ndarray, weights: np.ndarray, other_probs: np.ndarray, other_weights: np.ndarray) -> None:
        """Adds rows, matched.

        Args:
            probs: (R, E) probabilities.
            weights: (R, E) mixture weights, 0 for experts that were not chosen.
            other_probs: (R, E) after the change.
            other_weights: (R, E) after the change.
        """
        best, again = best_experts(probs, self.slots), best_experts(other_probs, self.slots)
        chosen, chosen_again = weights > 0, other_weights > 0
        with np.errstate(divide='ignore', invalid='ignore'):
            terms = np.where(probs > 0, probs * (np.log2(probs) - np.log2(other_probs)), 0)
        divergences = terms.sum(1)
        finite = np.isfinite(divergences)
        self.rows += len(probs)
        self.same_best += share_kept(best, again) * len(probs)
        self.overlap += float(((chosen & chosen_again).sum(1) / np.maximum(chosen.sum(1), 1)).sum())
        self.divergence += float(divergences[finite].sum())
        self.unbounded += int((~finite).sum())

    def mean(self) -> Agreement:
        """The means.

        Raises:
            ValueError: no row was added.
        """
        if not self.rows:
            raise ValueError('no rows were compared')
        finite = self.rows - self.unbounded
        divergence = self.divergence / finite if finite else None
        return Agreement(self.rows, self.same_best / self.rows, self.overlap / self.rows, divergence, self.unbounded)
