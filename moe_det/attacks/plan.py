"""The attacks and corruptions that can be asked for, by name; imports nothing, so that commands list them at once."""

from __future__ import annotations

from dataclasses import dataclass

DETECTION, ENTROPY, EXPERT = 'detection', 'gate entropy', 'worst expert'  # objectives
PARTS = ('both', 'class', 'box')  # of the detection loss
UNIVERSAL, NOISE = 'universal', 'noise'


@dataclass(frozen=True)
class Attack:
    """One way to perturb an image.

    Attributes:
        name: as the command line and the tables have it.
        objective: what it raises: the detection loss, the entropy of the gates, or the probability that the gates give
            the worst expert; None for noise, which raises nothing.
        steps: of the gradient; 0 without.
        restarts: random starts, of which the best counts.
    """

    name: str
    objective: str | None
    steps: int = 0
    restarts: int = 1

    @property
    def on_gate(self) -> bool:
        """Whether it is about the gates, so that a detector without experts cannot be its source."""
        return self.objective in (ENTROPY, EXPERT)


FGSM, PGD, PGD_LONG, PGD_RESTARTS = 'fgsm', 'pgd-10', 'pgd-20', 'pgd-20-restarts'
ATTACKS = {
    attack.name: attack
    for attack in (
        Attack(NOISE, None),
        Attack(FGSM, DETECTION, steps=1),
        Attack(PGD, DETECTION, steps=10),
        Attack(PGD_LONG, DETECTION, steps=20),
        Attack(PGD_RESTARTS, DETECTION, steps=20, restarts=5),
        Attack(UNIVERSAL, DETECTION, steps=1),
        Attack('gate-entropy', ENTROPY, steps=10),
        Attack('worst-expert', EXPERT, steps=10),
    )
}
CHECKS = (PGD_LONG, PGD_RESTARTS)  # whether the attacks of fewer steps are strong enough
TRANSFERRED = PGD  # the attack whose images every row is shown

# the 15 of the benchmark (arXiv 1807.01697, 1907.07484), by kind
CORRUPTIONS = (
    *('gaussian_noise', 'shot_noise', 'impulse_noise'),
    *('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    *('snow', 'frost', 'fog', 'brightness'),
    *('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
)
SEVERITIES = (1, 2, 3, 4, 5)
