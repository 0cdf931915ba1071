"""From what was measured on a layer to one word that a reader can trust.

Three questions are kept apart: does the gate sort objects by size beyond the level, does it sort more than random gates
on the same features, and does its choice matter for the detector (the swap test)?
"""

from __future__ import annotations

from dataclasses import dataclass

from .result import NOT_BY_SIZE, SCALE, SIZE, SORTED, UNDETERMINED, SpecializationResult


class TooLittle(str):
    """Why a unit that can be had in principle has too little data; any other text is why it cannot be had at all."""


@dataclass(frozen=True)
class Evidence:
    """What was found on a layer.

    Attributes:
        detection: measurement of the detection unit, or why it cannot be had.
        training: measurement of the training unit, or why it cannot be had.
        has_levels: whether objects have a level of a pyramid.
        beyond_random: whether the gate sorts more than random gates do; None where that was not measured.
        swap_costs: whether the detector loses when images exchange their routes; None where that is not known.
        swap_reason: why the swap test was run and yet cannot tell; empty where it was not run.
    """

    detection: SpecializationResult | str
    training: SpecializationResult | str
    has_levels: bool
    beyond_random: bool | None
    swap_costs: bool | None
    swap_reason: str = ''

    @property
    def main(self) -> SpecializationResult | None:
        """The detection unit where it can be had, else the training unit."""
        found = [unit for unit in (self.detection, self.training) if not isinstance(unit, str)]
        return found[0] if found else None


def sorting(evidence: Evidence) -> tuple[bool | None, str]:
    """Whether the gate sorts by size beyond the level, in the detection unit and in the training unit.

    The detection unit selects objects by what the routing did for them, the training unit has all; so both are asked.

    Returns:
        True, False, or None with the reason why the data cannot tell.
    """
    if not evidence.has_levels:
        return None, 'the objects of this detector have no level of a pyramid, so nothing can be said beyond the level'
    reasons, unavailable, found = [], [], []
    for name, unit in (('detection', evidence.detection), ('training', evidence.training)):
        if isinstance(unit, TooLittle):
            reasons.append(f'{name} unit: {unit}')
        elif isinstance(unit, str):
            unavailable.append(f'{name} unit: {unit}')
        elif unit.sorts is None:
            reasons.append(f'{name} unit: {unit.undetermined_reason}')
        else:
            found.append(unit.sorts)
    if reasons:
        return None, '; '.join(reasons)
    if False in found:
        return False, ''
    if unavailable:
        return None, '; '.join(unavailable)
    return True, ''


def decide(evidence: Evidence) -> tuple[str, str]:
    """The verdict on a layer.

    - ``size-specialised``: sorts beyond the level and beyond random gates, and the swap costs average precision.
    - ``size-sorted``: sorts beyond the level; that it matters was not shown.
    - ``specialised, not by size``: the swap costs average precision; sorting beyond the level, or beyond what random
      gates do, was not shown.
    - ``scale-specialised``, ``level-specialised``, ``not specialised``: see
      :attr:`~moe_det.analysis.result.SpecializationResult.verdict`.
    - ``undetermined``: the data cannot tell.

    Returns:
        The word, and for ``undetermined`` the reason, else an empty string.
    """
    sorts, reason = sorting(evidence)
    main = evidence.main
    if sorts is None or main is None:
        if main is not None and not evidence.has_levels and main.follows_scale:
            return SCALE, ''
        return UNDETERMINED, reason
    if evidence.swap_reason:
        return UNDETERMINED, f'the swap test cannot tell: {evidence.swap_reason}'
    if evidence.swap_costs:
        return (SIZE if sorts and evidence.beyond_random else NOT_BY_SIZE), ''
    return (SORTED if sorts else main.without_sorting), ''
