"""Is a random gate called 'beyond random gates' as seldom as promised, and a gate that sorts nearly always?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from moe_det.analysis.random_gates import RandomGates, random_gates

from .routers import EXPERTS, size_rows, thirds
from .scenes import LEVELS, Scenes, coco_like, gamma_counts

IMAGES, CHANNELS, COUNT = 100, 16, 200


@dataclass(frozen=True)
class PlantedGate:
    """A trained gate to draw simulations from.

    Attributes:
        name: what it is.
        decide: rng, scenes, (N, L, C) features -> (N, L) experts.
        beyond: whether it sorts more than random gates do.
    """

    name: str
    decide: Callable[[np.random.Generator, Scenes, np.ndarray], np.ndarray]
    beyond: bool

    def draw(self, rng: np.random.Generator, seed: int) -> RandomGates:
        """One simulation."""
        scenes = coco_like(rng, gamma_counts(rng, IMAGES))
        features = row_features(rng, scenes)
        top = self.decide(rng, scenes, features)
        return random_gates(
            features.reshape(-1, CHANNELS),
            top.ravel(),
            np.tile(np.arange(LEVELS), IMAGES),
            num_experts=EXPERTS,
            rows=scenes.image * LEVELS + scenes.level,
            sizes=thirds(scenes),
            entry_levels=scenes.level,
            weights=np.ones(len(scenes.image)),
            count=COUNT,
            seed=seed,
        )


def row_features(rng: np.random.Generator, scenes: Scenes) -> np.ndarray:
    """(N, L, C) features as networks have them: they tell the level, the scale of the scene, and other things.

    So any function of them, a random one too, sorts by size to some degree.
    """
    told = scenes.scale[:, None, None] * rng.normal(size=CHANNELS) * 0.5
    own = rng.normal(size=(LEVELS, CHANNELS)) + rng.normal(size=(scenes.num_images, LEVELS, CHANNELS))
    return told + own


def random_weights(rng: np.random.Generator, scenes: Scenes, features: np.ndarray, spread: float) -> np.ndarray:
    """A gate with random weights; ``spread`` of its bias, in deviations of a logit, makes its use uneven."""
    logits = features @ rng.normal(size=(CHANNELS, EXPERTS))
    return (logits + spread * logits.std() * rng.normal(size=EXPERTS)).argmax(-1)


def sorting(rng: np.random.Generator, scenes: Scenes, features: np.ndarray, strength: float) -> np.ndarray:
    """A gate that sorts by relative size."""
    return size_rows(rng, scenes, 'relative', strength)


def planted_gates(strengths: dict[float, float]) -> list[PlantedGate]:
    """Random gates first; ``strengths`` are those of the gates that sort, by their V."""
    return [
        PlantedGate('random gate, even use', partial(random_weights, spread=0.0), False),
        PlantedGate('random gate, uneven use', partial(random_weights, spread=1.0), False),
        *(
            PlantedGate(f'relative size, V = {v:g}', partial(sorting, strength=strength), True)
            for v, strength in strengths.items()
        ),
    ]
