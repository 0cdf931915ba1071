"""Which classes a gate gives to which experts: the mean gate probability per class (arXiv 2204.10598, section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from ..analysis.information import mutual_information
from ..figures import palette, values
from ..figures.heat import Cell, Head, Heat

TOP_CLASSES = 5


@dataclass(frozen=True)
class ClassAllocation:
    """How a layer's gate spreads the samples of each class over its experts.

    Attributes:
        layer: name of the layer.
        classes: K class names, in the order of the labels.
        weights: (K, E) mean over a class's samples of the gate's probabilities, the softmax over all experts; NaN for
            a class without samples.
        samples: (K,) number of samples of each class.
        groups: superclass -> indices of its classes; empty without superclasses.
    """

    layer: str
    classes: tuple[str, ...]
    weights: np.ndarray
    samples: np.ndarray
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.weights.shape[1]

    def top_classes(self, expert: int, count: int = TOP_CLASSES) -> list[tuple[str, float]]:
        """The classes that ``expert`` has the largest weight of, largest first, ties in the order of the labels."""
        seen = np.flatnonzero(self.samples)
        order = seen[np.argsort(-self.weights[seen, expert], kind='stable')][:count]
        return [(self.classes[i], float(self.weights[i, expert])) for i in order]

    @property
    def mean_weights(self) -> np.ndarray:
        """(E,) mean gate probability over all samples."""
        return (np.nan_to_num(self.weights) * self.samples[:, None]).sum(0) / max(self.samples.sum(), 1)

    def group_weights(self) -> np.ndarray:
        """(G, E) mean gate probability over the samples of each superclass; NaN for one without samples."""
        sums = np.nan_to_num(self.weights) * self.samples[:, None]
        means = []
        for members in self.groups.values():
            count = self.samples[list(members)].sum()
            means.append(sums[list(members)].sum(0) / count if count else np.full(self.num_experts, np.nan))
        return np.array(means).reshape(len(self.groups), self.num_experts)

    @property
    def information(self) -> float:
        """I(E;Y) in bits between the label and an expert that is drawn with the gate's probabilities; 0 when all
        classes are spread alike, at most log2 min(E, K)."""
        return float(mutual_information(np.nan_to_num(self.weights) * self.samples[:, None]))

    def to_dict(self) -> dict:
        """Plain Python values, for JSON; None for classes without samples."""
        found = {
            'layer': self.layer,
            'num_experts': self.num_experts,
            'information_bits': self.information,
            'classes': list(self.classes),
            'samples': self.samples.tolist(),
            'weights': values.cleaned(self.weights.tolist()),
            'top_classes': [
                [{'class': name, 'weight': weight} for name, weight in self.top_classes(expert)]
                for expert in range(self.num_experts)
            ],
        }
        if self.groups:
            rows = values.cleaned(self.group_weights().tolist())
            found['groups'] = dict(zip(self.groups, rows, strict=True))
        return found


class AllocationMeter:
    """Collects gate probabilities and labels batch by batch.

    Args:
        layer: name of the layer.
        num_experts: E.
        classes: K class names.
        groups: superclass -> indices of its classes.
    """

    def __init__(
        self,
        layer: str,
        num_experts: int,
        classes: Sequence[str],
        groups: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.layer, self.classes, self.groups = layer, tuple(classes), dict(groups or {})
        self._sums = np.zeros((len(self.classes), num_experts))
        self._samples = np.zeros(len(self.classes), dtype=np.int64)

    def update(self, probs: ArrayLike, labels: ArrayLike) -> None:
        """Adds a batch.

        Args:
            probs: (n, E) probabilities of the gate.
            labels: (n,) true class.

        Raises:
            ValueError: shapes that do not fit, or a class outside 0 ... K - 1.
        """
        probs, labels = np.asarray(probs, dtype=float), np.asarray(labels)
        if probs.ndim != 2 or probs.shape[1] != self._sums.shape[1] or labels.shape != probs.shape[:1]:
            raise ValueError(
                f'{self.layer}: probabilities of shape {probs.shape} and labels of shape {labels.shape}, expected '
                f'(n, {self._sums.shape[1]}) and (n,)'
            )
        outside = labels[(labels < 0) | (labels >= len(self.classes))]
        if len(outside):
            raise ValueError(f'{self.layer}: label {outside[0]}, expected 0 to {len(self.classes) - 1}')
        np.add.at(self._sums, labels, probs)
        np.add.at(self._samples, labels, 1)

    def compute(self) -> ClassAllocation:
        """The means over all batches."""
        with np.errstate(invalid='ignore'):
            weights = self._sums / self._samples[:, None]
        return ClassAllocation(self.layer, self.classes, weights, self._samples.copy(), self.groups)


def allocation_text(allocation: ClassAllocation, count: int = TOP_CLASSES) -> str:
    """The experts' top classes, and with superclasses a table of their weights, as plain text."""
    bits = f'I(E;Y) = {allocation.information:.3f} bits'
    lines = [f'{allocation.layer}: mean gate probability per class, largest first; {bits}']
    for expert in range(allocation.num_experts):
        top = ', '.join(f'{name} {weight:.2f}' for name, weight in allocation.top_classes(expert, count))
        lines.append(f'  expert {expert}: {top}')
    if allocation.groups:
        width = max(len(name) for name in allocation.groups)
        heads = ''.join(f'{f"e{expert}":>6}' for expert in range(allocation.num_experts))
        lines.append(f'  {"superclass":{width}}{heads}')
        for name, row in zip(allocation.groups, allocation.group_weights(), strict=True):
            cells = ''.join(f'{values.fixed(value).text:>6}' for value in row.tolist())
            lines.append(f'  {name:{width}}{cells}')
    return '\n'.join(lines)


def class_heat(allocation: ClassAllocation) -> Heat:
    """Class x expert: the mean gate probability; classes in the order of their superclasses where there are any."""
    groups: Mapping[str, Sequence[int]] = allocation.groups or {'': range(len(allocation.classes))}
    rows = [
        (Head(allocation.classes[i], (group,) if group else ()), _cells(allocation.weights[i], allocation))
        for group, members in groups.items()
        for i in members
    ]
    return Heat('class', _expert_heads(allocation), rows)


def group_heat(allocation: ClassAllocation) -> Heat:
    """Superclass x expert: the mean gate probability over the samples; without rows where there are no superclasses."""
    rows = [
        (Head(name), _cells(row, allocation))
        for name, row in zip(allocation.groups, allocation.group_weights(), strict=True)
    ]
    return Heat('superclass', _expert_heads(allocation), rows)


def _expert_heads(allocation: ClassAllocation) -> list[Head]:
    return [Head(f'expert {expert}') for expert in range(allocation.num_experts)]


def _cells(row: np.ndarray, allocation: ClassAllocation) -> list[Cell]:
    """Cells that say the weight; their shade says whether it is more or less than the expert has of all samples."""
    lifts = row / np.maximum(allocation.mean_weights, 1e-12)
    return [
        Cell(values.fixed(value), (), *palette.shade_lift(values.finite(lift)))
        for value, lift in zip(row.tolist(), lifts.tolist(), strict=True)
    ]
