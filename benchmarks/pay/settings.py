"""What benchmarks/experts_that_pay.py trains: detectors from scratch, and what goes on from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    'dense': ROOT / 'configs/shapes/kinds_dense.py',
    'experts': ROOT / 'configs/shapes/kinds_experts.py',
    'hard': ROOT / 'configs/shapes/kinds_experts_hard.py',
}
HEAD = 'model.bbox_head'
MOE = f'{HEAD}.moe'

START_EPOCHS, START_RATE = 40, 4e-3
MORE_EPOCHS, MORE_RATE = 6, 2e-3
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
        config: ``'dense'``, ``'experts'`` or ``'hard'``.
        options: changed keys of the config.
        start: name of the detector that it starts from.
        control: whether it has no experts.
    """

    about: str
    config: str = 'experts'
    options: dict[str, object] = field(default_factory=dict)
    start: str = 'dense'
    control: bool = False


STARTS = {
    'dense': Start({}, 'the detector that all mixtures start from'),
    'dense, twice the width': Start({f'{HEAD}.feat_channels': 16}, 'a head of 16 channels instead of 8'),
}


STRAIGHT = {'weighting': 'straight_through'}
TOP_1 = {**STRAIGHT, 'class_mixture': 'logits'}


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
    'shards, level': Row('the same, one decision per image and level', options=_moe(unit='level')),
    'shards, image, shared': Row(
        'as "shards, image", every copy a shared weight plus a difference', options=_moe(copies_share=True)
    ),
    'top-1, image': Row(
        'whole branches, 4 copies, one of them runs, straight through; class logits mixed, not probabilities',
        options=_moe(placement='branch', num_experts=4, top_k=1, **TOP_1),
    ),
    'top-1, image, probability': Row(
        'the same, its output weighted with the gate probability',
        options=_moe(placement='branch', num_experts=4, top_k=1, weighting='softmax'),
    ),
    'shards, image, 2 copies': Row('2 shards of 2 copies', options=_moe(copies=2)),
    'shards, image, 8 copies': Row('2 shards of 8 copies', options=_moe(copies=8)),
    'shards, image, no balance': Row('without a constraint', options=_moe(constraint=None)),
    'shards, image, balance 0.25': Row('KL constraint of weight 0.25', options=_moe(constraint__weight=0.25)),
    'shards, image, noise': Row('with learned gate noise', options=_moe(noise=True)),
    'shards, image, hard': Row('hard constraint (relative importance, 0.3) instead of KL', config='hard'),
    'shards, patch': Row('one decision per cell of a 2 x 2 grid', options=_moe(unit='patch', grid=2)),
    'tower, top-1, image': Row(
        'towers, 4 copies, one of them runs', options=_moe(placement='tower', num_experts=4, top_k=1, **STRAIGHT)
    ),
    'last, top-1, image': Row(
        'last convolutions, 4 copies, one of them runs',
        options=_moe(placement='last', num_experts=4, top_k=1, **STRAIGHT),
    ),
}
