"""What a measurement says: the numbers, and one word that a reader can trust."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    pass

ALPHA = 0.01
MIN_CRAMERS_V = 0.1  # a dependence that exists but is weaker than this is not called specialisation

SIZE = 'size-specialised'
SORTED = 'size-sorted'
NOT_BY_SIZE = 'specialised, not by size'
SCALE = 'scale-specialised'
LEVEL = 'level-specialised'
NOT = 'not specialised'
UNDETERMINED = 'undetermined'
VERDICTS = (SIZE, SORTED, NOT_BY_SIZE, SCALE, LEVEL, NOT, UNDETERMINED)


def _beyond_chance(p_value: float | None, adjusted: float | None, bits: float, null_99: float, v: float) -> bool | None:
    """Whether a dependence is significant and large enough to matter; None where there is no p-value."""
    if p_value is None:
        return None
    return (p_value if adjusted is None else adjusted) <= ALPHA and bits > null_99 and v >= MIN_CRAMERS_V


@dataclass(frozen=True)
class RelativeSize:
    """How much the experts of one layer know of size within the level. E experts, Q quantiles, L levels; in bits.

    Corrected values have the mean of their null distribution subtracted, see :class:`SpecializationResult`.

    Attributes:
        mi_bits: I(E; size within the level | level), corrected.
        mi_ci: its 95 % interval over resampled images; None without a bootstrap or without a p-value.
        p_value: by permuting rows between images within levels; None when the data cannot carry one.
        reason: why there is no p-value, else empty.
        null_99: 99 % quantile of the null distribution, on the scale of ``mi_bits``.
        cramers_v: effect size from 0 to 1, corrected for chance.
        ceiling_bits: entropy of the size within the level: the most that ``mi_bits`` can be.
        expert_by_size: (E, Q) objects (sums of mass and weight), the lowest quantile first.
        expert_by_size_by_level: (E, Q, L) the same by level.
        limits: (L, Q - 1) largest area in pixels of each quantile but the last.
        raw: plug-in values: ``mi_bits``, ``cramers_v``.
        adjusted_p_value: p-value after Holm's correction over layers; None unless :func:`adjust_for_layers` set it.
    """

    mi_bits: float
    mi_ci: tuple[float, float] | None
    p_value: float | None
    reason: str
    null_99: float
    cramers_v: float
    ceiling_bits: float
    expert_by_size: np.ndarray
    expert_by_size_by_level: np.ndarray
    limits: np.ndarray
    raw: dict[str, float]
    adjusted_p_value: float | None = None

    @property
    def sorts(self) -> bool | None:
        """Whether the experts sort objects by size within the level; None when the data cannot tell."""
        return _beyond_chance(self.p_value, self.adjusted_p_value, self.mi_bits, self.null_99, self.cramers_v)


@dataclass(frozen=True)
class SpecializationResult:
    """How much the experts of one layer know of object size. E experts, S sizes, L levels; information in bits.

    Values called corrected have the mean of their null distribution subtracted: plug-in information is positive even
    for a random router. They are not clipped, so that they average to zero without dependence; the plug-in values are
    in ``raw``.

    Attributes:
        mi_bits: I(E;S), corrected. It does not tell size from level: see ``mi_given_level_bits``.
        mi_p_value: of I(E;S) where every image has one decision for all its levels, by exchanging images; else None.
        mi_cramers_v: effect size of I(E;S), where it has a p-value.
        mi_given_level_bits: I(E;S | level), corrected.
        mi_given_level_ci: its 95 % interval over resampled images; None without a bootstrap or without a p-value.
        p_value: of I(E;S | level), by permuting rows between images within levels; None when the data cannot carry one.
        reason: why there is no p-value, else empty.
        null_99: 99 % quantile of the null distribution, on the scale of ``mi_given_level_bits``.
        cramers_v_given_level: effect size from 0 to 1, corrected for chance.
        level_mi_bits: I(E;level) over objects, corrected.
        level_p_value: of I(E;level), by shifting decisions between the levels of an image; None when the data carry
            none.
        level_cramers_v: effect size of the level, from 0 to 1, corrected for chance.
        h_size_given_level: H(S | level): the most that I(E;S | level) can be.
        expert_by_size: (E, S) objects (sums of mass and weight).
        expert_by_level: (E, L) the same by level.
        expert_by_size_by_level: (E, S, L) the same by size and level.
        levels: names of the L levels, as given.
        num_objects: entries measured.
        num_images: distinct images among them.
        num_groups: groups of images that belong together; the number of images where none were given.
        num_rows: routing rows that hold objects; others take no part.
        permutations: how many were drawn.
        raw: plug-in values: ``mi_bits``, ``mi_given_level_bits``, ``level_mi_bits``, ``cramers_v_given_level``.
        relative_size: the same question about size within the level; None where no areas were given.
        adjusted_p_value: p-value after Holm's correction over layers; None unless :func:`adjust_for_layers` set it.
        notes: what a reader should know of these data.
    """

    mi_bits: float
    mi_p_value: float | None
    mi_cramers_v: float | None
    mi_given_level_bits: float
    mi_given_level_ci: tuple[float, float] | None
    p_value: float | None
    reason: str
    null_99: float
    cramers_v_given_level: float
    level_mi_bits: float
    level_p_value: float | None
    level_cramers_v: float
    h_size_given_level: float
    expert_by_size: np.ndarray
    expert_by_level: np.ndarray
    expert_by_size_by_level: np.ndarray
    levels: tuple[int, ...]
    num_objects: int
    num_images: int
    num_groups: int
    num_rows: int
    permutations: int
    raw: dict[str, float]
    relative_size: RelativeSize | None = None
    adjusted_p_value: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def sorts(self) -> bool | None:
        """Whether the experts sort objects by size beyond the level; None when the data cannot tell.

        By size within the level where areas were given, else by the size bins: the corrected information is beyond
        99 % of its null (after Holm's correction where there are several layers) and Cramer's V is at least 0.1.
        """
        if self.relative_size is not None:
            return self.relative_size.sorts
        return _beyond_chance(
            self.p_value,
            self.adjusted_p_value,
            self.mi_given_level_bits,
            self.null_99,
            self.cramers_v_given_level,
        )

    @property
    def undetermined_reason(self) -> str:
        """Why :attr:`sorts` is None, else empty."""
        return self.reason if self.relative_size is None else self.relative_size.reason

    @property
    def follows_scale(self) -> bool:
        """Whether images have one decision each, and those of different scale get different experts."""
        p_value, v = self.mi_p_value, self.mi_cramers_v
        return p_value is not None and v is not None and p_value <= ALPHA and v >= MIN_CRAMERS_V

    @property
    def follows_level(self) -> bool:
        """Whether the expert depends on the level."""
        p_value = self.level_p_value
        return p_value is not None and p_value <= ALPHA and self.level_cramers_v >= MIN_CRAMERS_V

    @property
    def verdict(self) -> str:
        """What the routing alone shows; whether it matters for the detector only the detector can show.

        - ``size-sorted``: the experts sort objects by size beyond the level.
        - ``scale-specialised``: not shown, but images of different scale go to different experts.
        - ``level-specialised``: neither shown, but the expert depends on the level.
        - ``not specialised``: none of these was shown.
        - ``undetermined``: the data cannot tell.

        :func:`moe_det.analysis.verdicts.decide` adds what the swap test and random gates say.
        """
        sorts = self.sorts
        if sorts is None:
            return UNDETERMINED
        return SORTED if sorts else self.without_sorting

    @property
    def without_sorting(self) -> str:
        """The verdict where sorting beyond the level was not shown."""
        if self.follows_scale:
            return SCALE
        return LEVEL if self.follows_level else NOT

    @property
    def share_of_size_given_level(self) -> float:
        """I(E;S | level) / H(S | level): the part of what the level leaves open that the expert tells."""
        return self.mi_given_level_bits / self.h_size_given_level if self.h_size_given_level > 0 else 0.0

    def to_dict(self) -> dict:
        """Plain Python values, for JSON."""
        size = self.relative_size
        return {
            'verdict': self.verdict,
            'sorts': self.sorts,
            **_plain(self),
            'relative_size': None if size is None else {**_plain(size), 'sorts': size.sorts},
            'share_of_size_given_level': self.share_of_size_given_level,
        }

    def __str__(self) -> str:
        from .description import describe  # only text: kept apart from the numbers

        return describe(self)


def _plain(record: SpecializationResult | RelativeSize) -> dict:
    return {field.name: _plain_value(getattr(record, field.name)) for field in dataclasses.fields(record)}


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def holm(p_values: Iterable[float | None]) -> list[float | None]:
    """Holm's adjusted p-values (Scand. J. Stat. 6, 1979): they bound the chance of any false alarm in the family.

    Args:
        p_values: p-values of the family; None stands for a test that was not possible, stays None and does not count.
    """
    p_values = list(p_values)
    for p_value in p_values:
        if p_value is not None and not 0 <= p_value <= 1:
            raise ValueError(f'p-values lie in 0..1, got {p_value}')
    ascending = sorted((p_value, i) for i, p_value in enumerate(p_values) if p_value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (smallest, i) in enumerate(ascending):
        largest = max(largest, min(1.0, (len(ascending) - rank) * smallest))
        adjusted[i] = largest
    return adjusted


def adjust_for_layers(results: Mapping[str, SpecializationResult]) -> dict[str, SpecializationResult]:
    """The results of several layers of one model, with Holm-adjusted p-values: their verdicts use those.

    Args:
        results: layer name -> result, every layer that was looked at (leaving out some would void the correction).
    """
    adjusted = holm(result.p_value for result in results.values())
    relative = holm(None if r.relative_size is None else r.relative_size.p_value for r in results.values())
    found = {}
    for (name, result), p_value, relative_p in zip(results.items(), adjusted, relative, strict=True):
        size = result.relative_size
        if size is not None:
            size = dataclasses.replace(size, adjusted_p_value=relative_p)
        found[name] = dataclasses.replace(result, adjusted_p_value=p_value, relative_size=size)
    return found
