"""Which detectors are trained on which scenes, and what stands in the table."""

from __future__ import annotations

from dataclasses import dataclass, field

from common import ROOT

DENSE = ROOT / 'configs/shapes/retinanet_dense.py'
MIXTURE = ROOT / 'configs/shapes/mixture_of_detectors.py'
SCENES = ('far', 'near', 'all')
DATA = {'train': 800, 'val': 400, 'size': 256, 'seed': 0, 'scene-scale': 1}  # of tools/misc/make_shapes.py
EPOCHS, GATE_EPOCHS = 4, 2
IMAGE = (256, 256)  # height and width that costs are counted for


@dataclass(frozen=True)
class Row:
    """A line of the table; all are tested on all scenes.

    Attributes:
        about: what it is, for the page.
        scenes: that a single detector is trained on; empty for mixtures.
        epochs: of that training.
        options: changed keys of the mixture while its gate is trained.
        in_test: changed keys of the mixture while the trained gate is tested in another way.
    """

    about: str
    scenes: str = ''
    epochs: int = EPOCHS
    options: dict[str, object] = field(default_factory=dict)
    in_test: dict[str, object] = field(default_factory=dict)


ONE, ENSEMBLE, GATE = 'one on all scenes, twice as long', 'ensemble', 'gate'
ROWS = {
    'far scenes alone': Row('trained on scenes with small objects', 'far'),
    'near scenes alone': Row('trained on scenes with large objects', 'near'),
    'one on all scenes': Row('trained on as many images as each of the two', 'all'),
    ONE: Row('trained on as many images as both together', 'all', 2 * EPOCHS),
    GATE: Row('the two, mixed by a gate that is trained on all scenes'),
    ENSEMBLE: Row('the two, mixed with equal weights', in_test={'model.forced': [0, 1]}),
    'gate, one of two': Row(
        'a gate that is trained to choose one of them; both backbones run for it to see', options={'model.top_k': 1}
    ),
    'gate, one of two in the test': Row(
        'the gate that was trained to mix chooses one of them', in_test={'model.test_top_k': 1}
    ),
    'a gate per class': Row('a gate for each class and one for the boxes', options={'model.classwise': True}),
}

EXPECTED = [
    'Each detector alone is good at its own sizes only: AP_L below 10 of the one for far scenes, AP_S below 10 of the '
    'one for near scenes.',
    'The gate finds the scale of the scene, which its features tell: more than 2 AP above the ensemble, and exchanging '
    'routes between images loses more than 10.',
    'Of the row "one of two in the test" nothing was expected: it was added when the row above it had collapsed.',
    'Choosing one of the two is within 1 AP of mixing them, and a gate per class within 1 AP of one gate.',
    'One detector on all scenes for twice as long, with half of the multiply-adds, is not worse than the gate: sizes '
    'do not compete for what a detector of this width can hold.',
]
