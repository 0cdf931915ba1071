"""Planted detectors: what an expert can do for objects of each size is known, and the swap test must tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import expit

from moe_det.analysis.donors import donors_of, swapped_rows
from moe_det.analysis.ground_truth import GroundTruth
from moe_det.analysis.resampled_precision import ResampledPrecision, difference

from .routers import EXPERTS, crowding_rank, size_rows, thirds
from .scenes import LEVELS, Scenes, coco_like, gamma_counts, heavy_counts

IMAGES, DRAWS, RESAMPLES = 60, 2, 80
STRENGTH = 0.8  # of gates that sort by size
FALSE_POSITIVES = 3.0  # per image


@dataclass(frozen=True)
class Gate:
    """What a gate decides, and what its experts can do.

    Attributes:
        rows: (N, L) expert of each routing row.
        skills: (n, E) skill of each expert for each object; one unit is a standard deviation of an object's score.
    """

    rows: np.ndarray
    skills: np.ndarray


Plan = Callable[[np.random.Generator, Scenes], Gate]


class Detector:
    """Detections of simulated scenes under any routing.

    Every expert answers every object and every false alarm in its own way, the same whenever it is asked, as the
    network of an expert does. Its skill for the object moves the score, the precision of the box and the chance that
    there is a detection at all.

    Args:
        rng: source of randomness.
        scenes: the objects.
        skills: (n, E).
    """

    def __init__(self, rng: np.random.Generator, scenes: Scenes, skills: np.ndarray) -> None:
        n = len(scenes.image)
        side = np.sqrt(scenes.area)
        aspect = np.exp(0.3 * rng.normal(size=n))
        shape = np.stack([side * aspect, side / aspect], 1)
        self.truths = np.concatenate([rng.random((n, 2)) * [640, 480], shape], 1)  # x, y, width, height
        self.scores = expit(1 + skills + rng.normal(size=skills.shape))
        self.found = rng.random(skills.shape) < expit(2 + skills)
        error = 0.08 * np.exp(-0.5 * skills)[..., None] * rng.normal(size=(*skills.shape, 4))
        corner = self.truths[:, None, :2] + error[..., :2] * shape[:, None]
        self.boxes = np.concatenate([corner, shape[:, None] * np.exp(error[..., 2:])], 2)
        self.image, self.level = scenes.image, scenes.level
        # false alarms look like other objects, with lower scores
        alarms = rng.integers(n, size=rng.poisson(FALSE_POSITIVES * scenes.num_images))
        self.alarm_image = rng.integers(scenes.num_images, size=len(alarms))
        self.alarm_level = scenes.level[alarms]
        self.alarm_boxes = np.concatenate([rng.random((len(alarms), 2)) * [640, 480], shape[alarms]], 1)
        self.alarm_scores = expit(rng.normal(-1, 1, (len(alarms), skills.shape[1])))

    def detections(self, rows: np.ndarray) -> np.ndarray:
        """(d, 8) detections with (N, L) experts of the rows."""
        chosen = rows[self.image, self.level]
        n, a = np.arange(len(chosen)), np.arange(len(self.alarm_image))
        alarm = self.alarm_scores[a, rows[self.alarm_image, self.alarm_level]]
        there = self.found[n, chosen]
        parts = (
            (self.image[there], self.alarm_image),
            (self.boxes[n, chosen][there], self.alarm_boxes),
            (self.scores[n, chosen][there], alarm),
            (np.zeros(there.sum() + len(a)),),
            (self.level[there], self.alarm_level),
        )
        return np.column_stack([np.concatenate(part) for part in parts])

    def write(self, path: Path, areas: np.ndarray, images: int) -> GroundTruth:
        """The objects as a COCO json, read by the class that reads real ones."""
        columns = zip(self.image.tolist(), self.truths.tolist(), areas.tolist(), strict=True)
        annotations = [
            {'id': number, 'image_id': image, 'category_id': 0, 'bbox': box, 'area': area}
            for number, (image, box, area) in enumerate(columns)
        ]
        content = {
            'images': [{'id': image} for image in range(images)],
            'annotations': annotations,
            'categories': [{'id': 0, 'name': 'object'}],
        }
        path.write_text(json.dumps(content), encoding='utf-8')
        return GroundTruth(path, range(images))


def swap_test(rng: np.random.Generator, scenes: Scenes, gate: Gate, path: Path, seed: int) -> dict[str, dict | None]:
    """What swapping the gate's decisions between images changes, by measure.

    Args:
        rng: source of randomness.
        scenes: the objects.
        gate: decisions and skills.
        path: a json to write.
        seed: of the resamples.
    """
    detector = Detector(rng, scenes, gate.skills)
    precision = ResampledPrecision(detector.write(path, scenes.area, scenes.num_images), RESAMPLES, seed)
    natural = precision.of(detector.detections(gate.rows))
    image, level = (values.ravel() for values in np.indices(gate.rows.shape))
    swapped = []
    for _ in range(DRAWS):
        taken = swapped_rows(image, level, np.zeros_like(level), donors_of(scenes.counts, rng))
        swapped.append(precision.of(detector.detections(gate.rows.ravel()[taken].reshape(gate.rows.shape))))
    return difference(swapped, natural)


# -- gates and skills -----------------------------------------------------------------------------------------------


def by_size(rng: np.random.Generator, scenes: Scenes, gap: float) -> Gate:
    """The gate sorts by third of relative size; the expert of a third is better at it by ``gap`` than at others."""
    skills = np.where(thirds(scenes)[:, None] == np.arange(EXPERTS), gap / 2, -gap / 2)
    skills[:, 3] = 0  # chosen by chance alone
    return Gate(size_rows(rng, scenes, 'relative', STRENGTH), skills)


def unequal_experts(scenes: Scenes) -> np.ndarray:
    """(n, E) skills that differ between experts and not between sizes."""
    return np.broadcast_to([0.75, 0.25, -0.25, -0.75], (len(scenes.image), EXPERTS))


def coin_toss(rng: np.random.Generator, scenes: Scenes) -> Gate:
    """Experts differ, alike at all sizes; every row draws its expert."""
    return Gate(rng.integers(EXPERTS, size=(scenes.num_images, LEVELS)), unequal_experts(scenes))


def by_size_unequal(rng: np.random.Generator, scenes: Scenes) -> Gate:
    """Experts differ, alike at all sizes, and the gate sorts by size: the best one gets the lower thirds."""
    return Gate(size_rows(rng, scenes, 'relative', STRENGTH), unequal_experts(scenes))


def by_crowding(rng: np.random.Generator, scenes: Scenes) -> Gate:
    """The number of objects of the image names the expert; experts are equal."""
    expert = crowding_rank(rng, scenes) * EXPERTS // scenes.num_images
    return Gate(np.repeat(expert[:, None], LEVELS, 1), np.zeros((len(scenes.image), EXPERTS)))


def by_property(rng: np.random.Generator, scenes: Scenes, gap: float) -> Gate:
    """Images are of four kinds that have nothing to do with size, each with an expert that is better at it by ``gap``.

    The gate knows the kind.
    """
    kind = rng.integers(EXPERTS, size=scenes.num_images)
    skills = np.where(kind[scenes.image][:, None] == np.arange(EXPERTS), gap / 2, -gap / 2)
    return Gate(np.repeat(kind[:, None], LEVELS, 1), skills)


@dataclass(frozen=True)
class Planted:
    """A detector to draw simulations from.

    Attributes:
        name: what it is.
        plan: of its gate and experts.
        costs: whether the swap takes something away.
        heavy: whether counts have a heavy tail.
    """

    name: str
    plan: Plan
    costs: bool
    heavy: bool = False

    def draw(self, rng: np.random.Generator, path: Path, seed: int) -> dict[str, dict | None]:
        """One simulation: what the swap changes."""
        scenes = coco_like(rng, heavy_counts(rng, IMAGES) if self.heavy else gamma_counts(rng, IMAGES))
        return swap_test(rng, scenes, self.plan(rng, scenes), path, seed)


def planted_detectors() -> list[Planted]:
    """Those without a loss first."""
    return [
        Planted('gate sorts by size, experts are equal', partial(by_size, gap=0.0), False),
        Planted('experts differ alike at all sizes, coin-toss gate', coin_toss, False),
        Planted('gate follows crowding, experts are equal', by_crowding, False, heavy=True),
        *(
            Planted(f'gate sorts by size, experts differ by {gap:g}', partial(by_size, gap=gap), True)
            for gap in (0.5, 1.0, 2.0)
        ),
        Planted('gate sorts by size, experts differ alike at all sizes', by_size_unequal, True),
        Planted('gate knows kinds of images, experts differ by 1', partial(by_property, gap=1.0), True),
    ]
