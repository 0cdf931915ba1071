"""What benchmarks/experts_that_pay.py trains: detectors from scratch, and what goes on from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {'dense': ROOT / 'configs/shapes/kinds_dense.py', 'experts': ROOT / 'configs/shapes/kinds_experts.py'}
HEAD = 'model.bbox_head'
MOE = f'{HEAD}.moe'

START_EPOCHS, START_RATE = 20, 4e-3
MORE_EPOCHS, MORE_RATE = 10, 2e-3
BASELINE = 'dense continued'
TWICE = 'dense, twice the width, continued'
DATA = {'train': 1600, 'val': 400, 'size': 128, 'seed': 0, 'scene-kinds': 4}  # of tools/misc/make_shapes.py


@dataclass(frozen=True)
class Start:
    """A dense detector, trained from scratch.

    Attributes:
        options: changed keys of the dense config.
        about: what it is, for the page.
    """

    options: dict[str, object]
    about: str


@dataclass(frozen=True)
class Row:
    """A training that goes on from a dense detector.

    Attributes:
        about: what it is, for the page.
        config: ``'dense'`` or ``'experts'``.
        options: changed keys of the config.
        start: name of the detector that it starts from.
        control: whether it has no experts.
        epochs: length of the training; None for that of all rows.
        rate: peak learning rate; None for that of all rows.
    """

    about: str
    config: str = 'experts'
    options: dict[str, object] = field(default_factory=dict)
    start: str = 'dense'
    control: bool = False
    epochs: int | None = None
    rate: float | None = None


STARTS = {
    'dense': Start({}, 'the detector that all mixtures start from'),
    'dense, twice the width': Start({f'{HEAD}.feat_channels': 24}, 'a head of 24 channels instead of 12'),
}


def _moe(**keys: object) -> dict[str, object]:
    return {f'{MOE}.{key.replace("__", ".")}': value for key, value in keys.items()}


ROWS = {
    BASELINE: Row('the control of all rows', 'dense', control=True),
    TWICE: Row(
        'whether capacity binds',
        'dense',
        dict(STARTS['dense, twice the width'].options),
        start='dense, twice the width',
        control=True,
    ),
    'shards, image': Row('2 shards of 4 copies, one decision per image', options=_moe(unit='image')),
    'shards, level': Row('2 shards of 4 copies, one decision per image and level', options=_moe(unit='level')),
}
