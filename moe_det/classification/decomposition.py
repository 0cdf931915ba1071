"""How a mixture of classifiers splits its task: the numbers and the table that arXiv 2302.14703 judges it by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..analysis.information import mutual_information
from ..routing.metrics import utilisation
from ..routing.routing import Usage


@dataclass(frozen=True)
class Decomposition:
    """What a mixture of E classifiers did on a test set of K classes.

    Attributes:
        error: share of samples that the mixture gets wrong.
        information: I(E;Y) in bits, between the expert with the largest probability and the class that this expert
            predicts; at most log2 min(E, K), high when experts split the classes among them.
        row_entropy: H_s in bits, mean entropy of a sample's probabilities; low when the gate is decided.
        batch_entropy: H_u in bits, entropy of the mean probabilities; log2 E when all experts are used alike.
        table: (E, K) samples by expert and class predicted by it.
        samples: their number.
    """

    error: float
    information: float
    row_entropy: float
    batch_entropy: float
    table: np.ndarray
    samples: int

    def to_dict(self) -> dict[str, float]:
        """The four numbers under the names of the logs."""
        return {
            'error': self.error,
            'I_EY': self.information,
            'H_s': self.row_entropy,
            'H_u': self.batch_entropy,
        }


class DecompositionMeter:
    """Collects a test set batch by batch; all numbers are over the whole set (the published H_u: its last batch).

    Args:
        num_experts: E.
        num_classes: K.
    """

    def __init__(self, num_experts: int, num_classes: int) -> None:
        self.num_experts, self.num_classes = num_experts, num_classes
        self.reset()

    def reset(self) -> None:
        """Forgets all batches."""
        self._probs = torch.zeros(self.num_experts, dtype=torch.float64)
        self._entropy = torch.zeros((), dtype=torch.float64)
        self._table = torch.zeros(self.num_experts, self.num_classes, dtype=torch.long)
        self._wrong = 0

    def update(self, probs: Tensor, predicted: Tensor, by_expert: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            probs: (n, E) probabilities of the gate.
            predicted: (n,) class that the mixture predicts.
            by_expert: (n,) class that the expert with the largest probability predicts.
            labels: (n,) true class.

        Raises:
            ValueError: shapes that do not fit, or a class outside 0 ... K - 1.
        """
        probs = probs.detach().cpu().double()
        if probs.dim() != 2 or probs.shape[1] != self.num_experts:
            raise ValueError(f'probs has shape {tuple(probs.shape)}, expected (n, {self.num_experts})')
        classes = {'predicted': predicted, 'by_expert': by_expert, 'labels': labels}
        for name, values in classes.items():
            classes[name] = values = values.detach().cpu().long()
            if values.shape != probs.shape[:1]:
                raise ValueError(f'{name} has shape {tuple(values.shape)}, expected ({len(probs)},)')
            outside = values[(values < 0) | (values >= self.num_classes)]
            if len(outside):
                raise ValueError(f'{name} holds class {int(outside[0])}, expected 0 to {self.num_classes - 1}')
        self._probs += probs.sum(0)
        self._entropy += torch.special.entr(probs).sum()
        cells = probs.argmax(1) * self.num_classes + classes['by_expert']
        self._table += torch.bincount(cells, minlength=self._table.numel()).reshape(self._table.shape)
        self._wrong += int((classes['predicted'] != classes['labels']).sum())

    def merge(self, other: DecompositionMeter) -> None:
        """Adds what another process has seen.

        Raises:
            ValueError: it counts other experts or classes.
        """
        if (other.num_experts, other.num_classes) != (self.num_experts, self.num_classes):
            raise ValueError(
                f'cannot merge {other.num_experts} experts and {other.num_classes} classes into {self.num_experts} '
                f'experts and {self.num_classes} classes'
            )
        self._probs = self._probs + other._probs
        self._entropy = self._entropy + other._entropy
        self._table = self._table + other._table
        self._wrong += other._wrong

    def compute(self) -> Decomposition:
        """The numbers of all batches since the last reset.

        Raises:
            ValueError: fewer samples than experts: the information between experts and classes would mean nothing.
        """
        samples = int(self._table.sum())
        if samples < self.num_experts:
            raise ValueError(f'{samples} samples are too few to tell what {self.num_experts} experts do')
        rows = torch.tensor([samples], dtype=torch.float64)
        load = self._table.sum(1, keepdim=True).t().double()
        usage = Usage(self._probs[None], load, self._probs[None], self._entropy[None], rows)
        used = utilisation(usage)
        return Decomposition(
            error=self._wrong / samples,
            information=float(mutual_information(self._table.numpy())),
            row_entropy=used.row_entropy,
            batch_entropy=used.batch_entropy,
            table=self._table.numpy().copy(),
            samples=samples,
        )
