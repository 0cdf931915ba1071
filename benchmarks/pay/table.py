"""What the tables of continued detectors are made of: detectors that are trained from scratch, and what goes on from
them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common import ROOT

BASELINE = 'dense continued'  # the control that rows are compared with, by default


@dataclass(frozen=True)
class Start:
    """A dense detector, trained from scratch.

    Attributes:
        about: what it is, for the page.
        config: its config.
        options: changed keys of it.
    """

    about: str
    config: Path
    options: dict[str, object] = field(default_factory=dict)

    control = True
    against = None


@dataclass(frozen=True)
class Row:
    """A training that goes on from a dense detector.

    Attributes:
        about: what it is, for the page.
        config: its config.
        options: changed keys of it.
        start: name of the detector, or of the row, that it starts from.
        against: name of the control that it is compared with; None: it is one itself.
        control: whether it has no experts.
        forced: whether its experts are looked at one by one.
        clusters: key of the config that names a file of clusters of the start's features; None: it needs none.
    """

    about: str
    config: Path = ROOT / 'configs/shapes/kinds_experts.py'
    options: dict[str, object] = field(default_factory=dict)
    start: str = 'dense'
    against: str | None = BASELINE
    control: bool = False
    forced: bool = False
    clusters: str | None = None


@dataclass(frozen=True, eq=False)  # one table equals itself alone, so that what is known of it can be cached
class Table:
    """The trainings of a benchmark.

    Attributes:
        starts: by name, what is trained from scratch.
        rows: by name, what goes on from there.
        measured: what else is measured of a finished row: (name, seed, checkpoint, args) -> what the run keeps of it.
    """

    starts: Mapping[str, Start]
    rows: Mapping[str, Row]
    measured: Iterable[Callable[..., dict]] = ()

    def __getitem__(self, name: str) -> Start | Row:
        """A start or a row."""
        return self.starts.get(name) or self.rows[name]

    @property
    def names(self) -> list[str]:
        """Of starts and rows, in the order of the page."""
        return [*self.starts, *self.rows]
