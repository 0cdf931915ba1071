"""The measurement batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from .result import SpecializationResult
from .rows import Ids
from .specialization import measure_specialization


class SpecializationMeter:
    """Collects objects batch by batch, then measures: update, compute, reset.

    Args:
        num_experts: E.
        num_sizes: S.
        **options: passed on to :func:`~moe_det.analysis.measure_specialization`: permutations, bootstrap, seed,
            quantiles.

    Example:
        >>> meter = SpecializationMeter(num_experts=4)
        >>> meter.update(image_ids, levels, experts, sizes)
        >>> print(meter.compute())
    """

    _NAMES = ('image_ids', 'levels', 'experts', 'sizes', 'patches', 'weights', 'areas', 'groups')
    _IDS = ('image_ids', 'groups')  # of any kind: never made into arrays of numbers

    def __init__(self, num_experts: int, num_sizes: int = 3, **options: Any) -> None:
        self.num_experts = num_experts
        self.num_sizes = num_sizes
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Forgets all objects."""
        self._batches: list[dict[str, Any]] = []

    def update(
        self,
        image_ids: Ids,
        levels: ArrayLike,
        experts: ArrayLike,
        sizes: ArrayLike,
        patches: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        areas: ArrayLike | None = None,
        groups: Ids | None = None,
    ) -> None:
        """Adds objects; arguments as for :func:`~moe_det.analysis.measure_specialization`. Empty batches are skipped.

        Raises:
            ValueError: some arguments come with some batches only, or experts change between indices and masses.
        """
        values: dict[str, Any] = dict(
            zip(self._NAMES, (image_ids, levels, experts, sizes, patches, weights, areas, groups), strict=True)
        )
        batch: dict[str, Any] = {
            name: (value.tolist() if isinstance(value, np.ndarray) else list(value))
            if name in self._IDS
            else np.array(value)
            for name, value in values.items()
            if value is not None
        }
        if not batch['image_ids']:
            return
        if self._batches:
            first = self._batches[0]
            if batch.keys() != first.keys():
                raise ValueError(f'the first batch gave {", ".join(first)}; this one {", ".join(batch)}')
            if batch['experts'].ndim != first['experts'].ndim:
                raise ValueError('experts must be indices in every batch, or masses in every batch')
        self._batches.append(batch)

    def compute(self) -> SpecializationResult:
        """Measures all objects so far; the meter keeps them.

        Raises:
            DataError: there are none, or all are of one size.
        """
        if not self._batches:
            raise DataError('no objects to measure: update() has had none')
        arrays: dict[str, Any] = {
            name: [value for batch in self._batches for value in batch[name]]
            if name in self._IDS
            else np.concatenate([batch[name] for batch in self._batches])
            for name in self._batches[0]
        }
        return measure_specialization(**arrays, num_experts=self.num_experts, num_sizes=self.num_sizes, **self.options)
