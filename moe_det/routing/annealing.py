"""What a schedule changes of the routers while they train."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Annealing:
    """How a router decides and is balanced in training; evaluation knows none of it.

    Attributes:
        noise: factor of the noise.
        temperature: choice and weights come from the logits over this.
        balance: factor of the soft constraints' losses.
        top_k: another K; None for the own. Without slots alone.
    """

    noise: float = 1.0
    temperature: float = 1.0
    balance: float = 1.0
    top_k: int | None = None
