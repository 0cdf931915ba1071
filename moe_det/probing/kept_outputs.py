"""Outputs of all experts, kept while one batch is looked at under many routings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ..routing.dispatch import mix_chosen
from ..routing.experts import ExpertGroup
from ..routing.routing import Routing
from ..routing.rows import RowLayout


@contextmanager
def keep_outputs(groups: Sequence[ExpertGroup]) -> Iterator[None]:
    """Runs every expert once: inside, later calls of the groups mix what their experts gave the first time.

    For evaluating one batch under many routings: E experts run once instead of K for each routing. Inside, every call
    of a group must bring the same rows; sizes are not compared. Needs room for E outputs. A group that does not run
    its experts one by one, such as mixed kernels, goes on as it is.

    Args:
        groups: groups whose rows no routing changes.
    """
    for group in groups:
        kept = _Kept(group)
        # in place of the methods of its class
        vars(group).update(run_all=kept.run_all, run_sorted=kept.mix, run_dense=kept.mix)
    try:
        yield
    finally:
        for group in groups:
            del group.run_all, group.run_sorted, group.run_dense


class _Kept:
    def __init__(self, group: ExpertGroup) -> None:
        self._group = group
        self._run_all = group.run_all
        self._kept: dict[int, tuple[Tensor, Tensor | None]] = {}

    def run_all(self, rows: Tensor, level: int, with_keys: bool = False) -> tuple[Tensor, Tensor | None]:
        """As the group's own, once per level."""
        if level not in self._kept or (with_keys and self._kept[level][1] is None):
            self._kept[level] = self._run_all(rows, level, with_keys)
        return self._kept[level]

    def mix(self, rows: Sequence[Tensor], routing: Routing, layout: RowLayout, *_: object) -> list[Tensor]:
        """The outputs that the routing chose, mixed."""
        first, mixed = 0, []
        for level, x in enumerate(rows):
            outputs, _keys = self.run_all(x, level)
            mixed.append(mix_chosen(outputs, routing, first, self._group.mixture))
            if layout.unit != 'image':
                first += x.shape[0]
        return mixed
