"""Whether a layer's experts can choose rows (the key ``rows_per_expert``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..checks import check_count
from ..errors import MoEConfigError

if TYPE_CHECKING:
    from .settings import MoESettings

UNITS_OF_MANY_ROWS = ('patch', 'token', 'window')  # of which an image has several, all seen together


def check_rows_per_expert(settings: MoESettings, where: str, units: Sequence[str]) -> None:
    """Raises MoEConfigError unless there are so many rows to choose among.

    Args:
        settings: of the layer.
        where: config key of the settings, for messages.
        units: values of ``unit`` that the layer knows.
    """
    rows, unit, grid = settings.rows_per_expert, settings.unit, settings.grid
    if rows is None:
        return
    check_count(where, 'rows_per_expert', rows)
    if unit not in UNITS_OF_MANY_ROWS:
        fitting = ' or '.join(f'unit={known!r}' for known in units if known in UNITS_OF_MANY_ROWS)
        raise MoEConfigError(
            f'{where}.rows_per_expert={rows}: experts choose among several rows of an image, and unit={unit!r} has '
            f'one; {f"expected {fitting}" if fitting else "take it out"}'
        )
    if grid is not None and rows > grid**2:
        raise MoEConfigError(f'{where}.rows_per_expert={rows}: grid={grid} cuts a level into at most {grid**2} patches')


def check_no_row_is_lost(settings: MoESettings, where: str) -> None:
    """Raises MoEConfigError where rows that no expert chose would have no output; layers with a skip need not ask."""
    if settings.rows_per_expert is not None and not settings.shared_expert:
        raise MoEConfigError(
            f'{where}.rows_per_expert={settings.rows_per_expert}: rows that no expert chose would have no output here; '
            'add shared_expert=True'
        )
