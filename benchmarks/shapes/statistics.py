"""What the runs of several seeds of benchmarks/specialization_on_shapes.py say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_det.analysis.random_gates import BEYOND


@dataclass(frozen=True)
class Answers:
    """How many seeds answer each of the three questions with yes.

    Attributes:
        seeds: how many there are.
        sorts: by relative size beyond the level, in the detection unit and in the training unit.
        beyond: of these, more than random gates do.
        costs: lose AP at some size under the swap.
        size_specialised: have that verdict.
    """

    seeds: int
    sorts: int
    beyond: int
    costs: int
    size_specialised: int

    @property
    def closeness(self) -> tuple[float, float]:
        """To be compared: share of seeds with the verdict, then share of the questions answered with yes."""
        return self.size_specialised / self.seeds, (self.sorts + self.beyond + self.costs) / (3 * self.seeds)


def answers(found: Sequence[dict]) -> Answers:
    """Counts the seeds of one layer.

    Args:
        found: of each seed, what the record keeps of the layer.
    """
    sorts = [all(layer['sorts'].get(unit) is True for unit in ('detection', 'training')) for layer in found]
    beyond = [bool(layer['random_gates']) and layer['random_gates']['quantile'] > BEYOND for layer in found]
    return Answers(
        seeds=len(found),
        sorts=sum(sorts),
        beyond=sum(a and b for a, b in zip(sorts, beyond, strict=True)),
        costs=sum(bool(layer['swap'] and layer['swap']['costs']) for layer in found),
        size_specialised=sum(layer['verdict'] == 'size-specialised' for layer in found),
    )


def layers_of(setting: dict, layer: str) -> list[dict]:
    """What each seed recorded of a layer."""
    return [run['layers'][layer] for run in setting['runs'] if layer in run['layers']]


def relative_bits(layer: dict) -> float | None:
    """I(E; relative size | level) of one seed; None where it was not measured."""
    return (layer['relative_size'] or {}).get('mi_bits')


def swap_loss(layer: dict) -> float | None:
    """What the swap changes of AP, from -1 to 1, negative where it costs; None where it was not tested."""
    return ((layer['swap'] or {}).get('AP') or {}).get('difference')
