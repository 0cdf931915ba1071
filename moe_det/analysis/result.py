"""What a measurement says: the numbers, and one word that a reader can trust."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

ALPHA = 0.01
MIN_CRAMERS_V = 0.1  # a dependence that exists but is weaker than this is not called specialisation

SIZE = 'size-specialised'
LEVEL = 'level-specialised'
NOT = 'not specialised'
UNDETERMINED = 'undetermined'


@dataclass(frozen=True)
class SpecializationResult:
    """How much the experts of one layer know of object size. E experts, S sizes, L levels; information in bits.

    Values called corrected have the mean of their null distribution subtracted: plug-in information is positive even
    for a random router. They are not clipped, so that they average to zero without dependence; the plug-in values are
    in ``raw``.

    Attributes:
        mi_bits: I(E;S), corrected. It does not tell size from level: see ``mi_given_level_bits``.
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
        expert_by_level: (E, L) likewise.
        expert_by_size_by_level: (E, S, L) likewise.
        levels: names of the L levels, as given.
        num_objects: entries measured.
        num_images: distinct images among them.
        num_rows: routing rows that hold objects; others take no part.
        permutations: how many were drawn.
        raw: plug-in values: ``mi_bits``, ``mi_given_level_bits``, ``level_mi_bits``, ``cramers_v_given_level``.
        adjusted_p_value: p-value after Holm's correction over layers; None unless :func:`adjust_for_layers` set it.
        counterfactual: whether forcing experts moves AP_S, AP_M and AP_L as the table says; None while unknown.
        notes: what a reader should know of these data.
    """

    mi_bits: float
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
    num_rows: int
    permutations: int
    raw: dict[str, float]
    adjusted_p_value: float | None = None
    counterfactual: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One of four words.

        - ``size-specialised``: I(E;S | level) is beyond 99 % of its null (after Holm's correction where there are
          several layers), Cramer's V given the level is at least 0.1, and forcing experts does not contradict it.
        - ``level-specialised``: not so, but the expert depends on the level, by the same two measures.
        - ``not specialised``: neither.
        - ``undetermined``: the data cannot carry a p-value.
        """
        if self.p_value is None:
            return UNDETERMINED
        p_value = self.p_value if self.adjusted_p_value is None else self.adjusted_p_value
        beyond_null = p_value <= ALPHA and self.mi_given_level_bits > self.null_99
        if beyond_null and self.cramers_v_given_level >= MIN_CRAMERS_V and self.counterfactual is not False:
            return SIZE
        return self.fallback_verdict

    @property
    def fallback_verdict(self) -> str:
        """The verdict where specialisation in size is ruled out: of the level, none, or undetermined."""
        if self.p_value is None:
            return UNDETERMINED
        if self.level_p_value is not None and self.level_p_value <= ALPHA and self.level_cramers_v >= MIN_CRAMERS_V:
            return LEVEL
        return NOT

    @property
    def share_of_size_given_level(self) -> float:
        """I(E;S | level) / H(S | level): the part of what the level leaves open that the expert tells."""
        return self.mi_given_level_bits / self.h_size_given_level if self.h_size_given_level > 0 else 0.0

    def with_counterfactual(self, agrees: bool) -> SpecializationResult:
        """The same, with whether the AP_S, AP_M, AP_L of forced experts agree in sign with the table."""
        return dataclasses.replace(self, counterfactual=bool(agrees))

    def to_dict(self) -> dict:
        """Plain Python values, for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
        for name in ('mi_given_level_ci', 'levels', 'notes'):
            plain[name] = None if plain[name] is None else list(plain[name])
        return {
            'verdict': self.verdict,
            **plain,
            'raw': dict(self.raw),
            'share_of_size_given_level': self.share_of_size_given_level,
        }

    def plot(self):
        """Draws experts by sizes, by levels, and by sizes within each level; returns a matplotlib Figure."""
        from .plotting import plot_result  # matplotlib takes long to import

        return plot_result(self)

    def __str__(self) -> str:
        from .description import describe  # only text: kept apart from the numbers

        return describe(self)


def holm(p_values: Iterable[float | None]) -> list[float | None]:
    """Holm's adjusted p-values (Scand. J. Stat. 6, 1979): they bound the chance of any false alarm in the family.

    Args:
        p_values: p-values of the family; None stands for a test that was not possible, stays None and does not count.
    """
    p_values = list(p_values)
    for p_value in p_values:
        if p_value is not None and not 0 <= p_value <= 1:
            raise ValueError(f'p-values lie in 0..1, got {p_value}')
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=lambda i: p_values[i])
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def adjust_for_layers(results: Mapping[str, SpecializationResult]) -> dict[str, SpecializationResult]:
    """The results of several layers of one model, with Holm-adjusted p-values: their verdicts use those.

    Args:
        results: layer name -> result, every layer that was looked at (leaving out some would void the correction).
    """
    adjusted = holm(result.p_value for result in results.values())
    return {
        name: dataclasses.replace(result, adjusted_p_value=p_value)
        for (name, result), p_value in zip(results.items(), adjusted, strict=True)
    }
