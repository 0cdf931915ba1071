"""A result as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .result import SpecializationResult


def size_names(num_sizes: int) -> list[str]:
    """Names of the size bins: COCO's for three."""
    return ['small', 'medium', 'large'] if num_sizes == 3 else [f'size {index}' for index in range(num_sizes)]


def describe(result: SpecializationResult) -> str:
    """Verdict, numbers, the table of experts by sizes and the notes, in a few lines."""
    lines = [
        f'{result.verdict}  ({result.num_objects} objects, {result.num_rows} routing rows, {result.num_images} images)',
        f'  I(E;S | level)  {result.mi_given_level_bits:.4f} bits{_interval(result)}, '
        f'99 % of the null below {result.null_99:.4f}, H(S | level) {result.h_size_given_level:.4f}',
        f'  {_p_value(result)}',
        f"  Cramer's V given level  {result.cramers_v_given_level:.3f}",
        f'  I(E;S)  {result.mi_bits:.4f} bits; I(E;level)  {result.level_mi_bits:.4f} bits, '
        f'V {result.level_cramers_v:.3f}, p {_number(result.level_p_value)}',
    ]
    if result.counterfactual is not None:
        lines.append(f'  forced experts {"agree" if result.counterfactual else "contradict the table"}')
    names = size_names(result.expert_by_size.shape[1])
    lines.append('  expert  ' + ''.join(f'{name:>10}' for name in names))
    for expert, row in enumerate(result.expert_by_size):
        lines.append(f'  {expert:<8}' + ''.join(f'{value:>10.6g}' for value in row))
    return '\n'.join([*lines, *(f'  note: {note}' for note in result.notes)])


def _interval(result: SpecializationResult) -> str:
    if result.mi_given_level_ci is None:
        return ''
    low, high = result.mi_given_level_ci
    return f' (95 %: {low:.4f} to {high:.4f})'


def _p_value(result: SpecializationResult) -> str:
    if result.p_value is None:
        return f'no p-value: {result.reason}'
    text = f'p {_number(result.p_value)} ({result.permutations} permutations)'
    if result.adjusted_p_value is not None:
        text += f', {_number(result.adjusted_p_value)} over all layers'
    return text


def _number(p_value: float | None) -> str:
    return 'none' if p_value is None else f'{p_value:.2g}'
