"""A result as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .sizes import size_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .result import SpecializationResult


def plot_result(result: SpecializationResult) -> Figure:
    """Draws how each size, and each level, is shared among the experts; then the sizes within each level.

    Columns of a panel sum to 1, so that a router which ignores size gives equal columns. The panels of single levels
    are the ones that count: the panel of all levels together shows the level as well.
    """
    from matplotlib.figure import Figure

    tables = result.expert_by_size_by_level
    num_experts, num_sizes, num_levels = tables.shape
    sizes = size_names(num_sizes)
    panels = [
        ('all levels', result.expert_by_size, sizes),
        ('levels', result.expert_by_level, [str(level) for level in result.levels]),
        *((f'level {level}', tables[:, :, i], sizes) for i, level in enumerate(result.levels)),
    ]
    figure = Figure(figsize=(2.2 * len(panels) + 1, 0.4 * num_experts + 2.2), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, table, names) in zip(axes, panels, strict=True):
        count = table.sum(0)
        share = np.divide(table, count, out=np.full(table.shape, np.nan), where=count > 0)
        image = axis.imshow(share, vmin=0, vmax=1, cmap='viridis', aspect='auto')
        labels = [f'{name}\n{total:.6g}' for name, total in zip(names, count, strict=True)]
        axis.set_xticks(range(len(names)), labels, fontsize=7)
        axis.set_yticks(range(num_experts), [str(expert) for expert in range(num_experts)], fontsize=7)
        axis.set_title(title, fontsize=9)
    axes[0].set_ylabel('expert')
    figure.colorbar(image, ax=axes, label='share of the objects in the column')
    p_value = 'no p-value' if result.p_value is None else f'p = {result.p_value:.2g}'
    figure.suptitle(
        f'{result.verdict}: I(E;S | level) = {result.mi_given_level_bits:.4f} bits, '
        f'V = {result.cramers_v_given_level:.2f}, {p_value}',
        fontsize=10,
    )
    return figure
