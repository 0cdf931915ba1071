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
        vars(group).update(run_all=kept.run_all, run_sorted=kept.mix, run_unsorted=kept.mix)
    try:
        yield
    finally:
        for group in groups:
            del group.run_all, group.run_sorted, group.run_unsorted


class _Kept:
    def __init__(self, group: ExpertGroup) -> None:
        self._group = group
        self._run_all = group.run_all
        self._kept: tuple[list[Tensor], list[Tensor]] | None = None

    def run_all(self, rows: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As the group's own, once."""
        if self._kept is None:
            self._kept = self._run_all(rows)
        return self._kept

    def mix(self, rows: Sequence[Tensor], routing: Routing, layout: RowLayout, *_: object) -> list[Tensor]:
        """The outputs that the routing chose, mixed."""
        first, mixed = 0, []
        for outputs in self.run_all(rows)[0]:
            mixed.append(mix_chosen(outputs, routing, first, self._group.mixture))
            if layout.unit != 'image':
                first += outputs.shape[0]
        return mixed
