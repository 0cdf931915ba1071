"""A result as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .sizes import size_names

if TYPE_CHECKING:
    from .result import SpecializationResult


def describe(result: SpecializationResult) -> str:
    """Verdict, numbers, the table of experts by sizes and the notes, in a few lines."""
    groups = '' if result.num_groups == result.num_images else f' in {result.num_groups} groups'
    lines = [
        f'{result.verdict}  ({result.num_objects} objects, {result.num_rows} routing rows, '
        f'{result.num_images} images{groups})',
    ]
    if (size := result.relative_size) is not None:
        lines += [
            f'  I(E;size within the level)  {size.mi_bits:.4f} bits{_interval(size.mi_ci)} of {size.ceiling_bits:.4f}, '
            f'99 % of the null below {size.null_99:.4f}',
            f"    Cramer's V  {size.cramers_v:.3f}; "
            + _p_value(size.p_value, size.adjusted_p_value, size.reason, result),
        ]
    lines += [
        f'  I(E;S | level)  {result.mi_given_level_bits:.4f} bits{_interval(result.mi_given_level_ci)} of '
        f'{result.h_size_given_level:.4f}, 99 % of the null below {result.null_99:.4f}',
        f"    Cramer's V  {result.cramers_v_given_level:.3f}; "
        + _p_value(result.p_value, result.adjusted_p_value, result.reason, result),
        f'  I(E;S)  {result.mi_bits:.4f} bits; I(E;level)  {result.level_mi_bits:.4f} bits, '
        f'V {result.level_cramers_v:.3f}, p {_number(result.level_p_value)}',
    ]
    names = size_names(result.expert_by_size.shape[1])
    lines.append('  expert  ' + ''.join(f'{name:>10}' for name in names))
    for expert, row in enumerate(result.expert_by_size):
        lines.append(f'  {expert:<8}' + ''.join(f'{value:>10.6g}' for value in row))
    return '\n'.join([*lines, *(f'  note: {note}' for note in result.notes)])


def _interval(interval: tuple[float, float] | None) -> str:
    return '' if interval is None else f' (95 %: {interval[0]:.4f} to {interval[1]:.4f})'


def _p_value(p_value: float | None, adjusted: float | None, reason: str, result: SpecializationResult) -> str:
    if p_value is None:
        return f'no p-value: {reason}'
    text = f'p {_number(p_value)} ({result.permutations} permutations)'
    return text if adjusted is None else f'{text}, {_number(adjusted)} over all layers'


def _number(p_value: float | None) -> str:
    return 'none' if p_value is None else f'{p_value:.2g}'
