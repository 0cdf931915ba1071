"""Makes the perturbed images of the attacks, and collects what each row detects on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..analysis.ground_truth import GroundTruth
from ..attacks.agreement import KeptChoices
from ..attacks.objectives import detection_loss, expert_probability, gate_entropy
from ..attacks.perturbations import Ball, Objective, fgsm, pgd, random_signs, shifted, universal
from ..attacks.plan import CHECKS, DETECTION, ENTROPY, EXPERT, FGSM, NOISE, PARTS, TRANSFERRED, UNIVERSAL, Attack
from ..attacks.rows import Row, forced_experts
from ..common.image_frame import Frame
from ..probing.findings import detection_table
from ..probing.places import Truth
from ..probing.run import truths_of
from ..routing.intervention import intervene
from ..running.trained_model import TestBatches

STEPS_PER_EPS = 4  # a step of eps / 4: 2/255 for 8/255, as in arXiv 2509.05086; for other eps our own choice


@dataclass(frozen=True)
class Scene:
    """One image.

    Attributes:
        position: among the images of the ground truth.
        images: (1, 3, H, W) pixels in 0 ... 255, as the pipeline leaves them.
        sample: its data sample.
        truth: its ground truths.
    """

    position: int
    images: Tensor
    sample: Any
    truth: Truth

    def only_content(self, images: Tensor) -> Tensor:
        """These images where the scene has content, and the scene itself where its pipeline padded it."""
        frame = Frame.of(self.sample.metainfo)
        height, width = images.shape[-2:]
        if frame.end is None or (not frame.offset.any() and (frame.end >= (width, height)).all()):
            return images
        (left, top), (right, bottom) = frame.offset.astype(int), frame.end.astype(int)
        inside = torch.zeros_like(images, dtype=torch.bool)
        inside[..., top:bottom, left:right] = True
        return torch.where(inside, images, self.images)


def scenes_of(
    batches: TestBatches, numbers: Sequence[int], ground_truth: GroundTruth, device: torch.device
) -> Iterator[Scene]:
    """Yields images of a test set whose batches have one image.

    Args:
        batches: the test set.
        numbers: which images.
        ground_truth: of these.
        device: where the pixels go.
    """
    for image_ids, batch in batches.select(numbers):
        (position,) = ground_truth.positions_of(image_ids)
        (truth,) = truths_of(ground_truth, [position])
        yield Scene(position, batch['inputs'][0].to(device).float()[None], batch['data_samples'][0], truth)


@dataclass(frozen=True)
class Trial:
    """One kind of perturbed images.

    Attributes:
        attack: how they are made.
        eps: largest change of a pixel, of 255.
        part: of the detection loss; None where that is not attacked.
    """

    attack: Attack
    eps: float
    part: str | None


def trials_of(attacks: Sequence[Attack], eps: Sequence[float], parts: Sequence[str]) -> list[Trial]:
    """Every attack with every eps, those on the detection loss with every part of it."""
    return [
        Trial(attack, size, part)
        for attack in attacks
        for size in eps
        for part in (parts if attack.objective == DETECTION else (None,))
    ]


def with_gates(attack: Attack, rows: Sequence[Row]) -> list[Row]:
    """The rows whose gates an attack on gates can reach: those that decide.

    The worst expert is known of the first detector, whose experts were forced; another's layers and experts are others.
    """
    return [row for row in rows if row.decides and (attack.objective != EXPERT or row.model is rows[0].model)]


def sources_of(trial: Trial, rows: Sequence[Row]) -> list[Row]:
    """The rows that images are made for.

    Attacks of many steps, which check that those of ten are enough, are made for detectors under their own routing
    alone, or for the first row where there is none: they would cost more than all others together (our own choice).
    """
    if trial.attack.on_gate:
        return with_gates(trial.attack, rows)
    if trial.attack.name in CHECKS:
        return [row for row in rows if not row.interventions] or list(rows[:1])
    return list(rows)


def victims_of(trial: Trial, source: Row, rows: Sequence[Row], parts: Sequence[str] = PARTS) -> list[Row]:
    """The rows that are shown the images made for ``source``: itself, or all of them for the transfer matrix."""
    return list(rows) if trial.attack.name == TRANSFERRED and trial.part == parts[0] else [source]


@dataclass
class Maker:
    """Makes perturbed images.

    Attributes:
        seed: of starts and random signs; an image has the same ones for every row.
        worst: the forced row that an attack on the gate drives to.
        shifts: universal perturbations, by trial and name of the row.
    """

    seed: int = 0
    worst: Row | None = None
    shifts: dict[tuple[Trial, str], Tensor] = field(default_factory=dict)

    def __call__(self, trial: Trial, row: Row, scene: Scene) -> Tensor:
        """(1, 3, H, W) the image as perturbed for a row; padding stays as it is."""
        return scene.only_content(self._perturbed(trial, row, scene))

    def _perturbed(self, trial: Trial, row: Row, scene: Scene) -> Tensor:
        attack, ball, images = trial.attack, Ball(trial.eps), scene.images
        generator = torch.Generator(images.device).manual_seed(self.seed * 1_000_003 + scene.position)
        if attack.name == NOISE:
            return random_signs(images, ball, generator)
        if attack.name == UNIVERSAL:
            return shifted(images, self.shifts[trial, row.name], ball)
        objective = self.objective(trial, row, scene)
        with intervene(row.model, row.interventions):
            if attack.name == FGSM:
                return fgsm(images, objective, ball)
            step = trial.eps / STEPS_PER_EPS
            return pgd(images, objective, ball, attack.steps, step, attack.restarts, generator)

    def objective(self, trial: Trial, row: Row, scene: Scene) -> Objective:
        """What a trial raises for one image, by its content alone."""
        raised = self._objective(trial, row, scene)
        return lambda images: raised(scene.only_content(images))

    def _objective(self, trial: Trial, row: Row, scene: Scene) -> Objective:
        if trial.attack.objective == ENTROPY:
            return gate_entropy(row.model, scene.sample)
        if trial.part is None:
            assert self.worst is not None  # asked for with the attack
            return expert_probability(row.model, scene.sample, forced_experts(self.worst))
        return detection_loss(row.model, scene.sample, scene.truth, trial.part, self.seed)

    def fit(self, trial: Trial, row: Row, scenes: Callable[[], Iterator[Scene]], passes: int) -> None:
        """Fits the universal perturbation of a trial to a row, with as many passes over the images."""
        ball, shift = Ball(trial.eps), None
        with intervene(row.model, row.interventions):
            for _ in range(passes):
                pairs = ((scene.images, self.objective(trial, row, scene)) for scene in scenes())
                shift = universal(pairs, ball, trial.eps / STEPS_PER_EPS / 2, shift)
        assert shift is not None
        self.shifts[trial, row.name] = shift


@dataclass
class Found:
    """What a row detects on one kind of images, image by image.

    Attributes:
        tables: detections as the analysis takes them.
        agreement: of its gates with those on the clean images.
    """

    tables: list[np.ndarray] = field(default_factory=list)
    agreement: KeptChoices = field(default_factory=KeptChoices)

    def add(
        self, row: Row, images: Tensor, scene: Scene, clean: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Takes the detections of a row on images; returns the choices of its gates.

        Args:
            row: that predicts.
            images: (1, 3, H, W) pixels.
            scene: what they were made of.
            clean: the choices on the clean image.
        """
        found, choices = row.predict(images, scene.sample)
        self.tables.append(detection_table([found], [scene.position]))
        if clean:
            self.agreement.add(clean, choices)
        return choices

    def numbers(self, ground_truth: GroundTruth, clean: dict | None = None) -> dict:
        """``ap`` by name; beside the numbers on clean images also ``drop``, the share of AP lost, and ``agreement``."""
        numbers: dict[str, Any] = {'ap': ground_truth.average_precision(np.concatenate(self.tables))}
        if clean is not None:
            before, after = clean['ap']['AP'], numbers['ap']['AP']
            numbers['drop'] = None if not before or after is None else 1 - after / before
            numbers['agreement'] = self.agreement.shares()
        return numbers
