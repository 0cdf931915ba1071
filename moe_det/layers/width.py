"""Expert widths that make K active experts cost what the dense branch costs."""

from __future__ import annotations

from collections.abc import Callable

from ..checks import is_number
from ..errors import MoEConfigError

MATCHED = 'matched'
TOLERANCE = 0.05  # of the dense cost


def conv_cost(in_channels: int, out_channels: int, kernel_size: int = 3) -> int:
    """Multiply-adds of a convolution per output pixel."""
    return kernel_size * kernel_size * in_channels * out_channels


def matched_width(cost: Callable[[int], int], dense_cost: int, top_k: float, largest: int, multiple: int = 1) -> int:
    """The inner width at which ``top_k`` experts come nearest to the cost of the dense branch.

    Args:
        cost: inner width -> cost of one expert, increasing.
        dense_cost: cost of the branch that the experts replace.
        top_k: experts that a row runs.
        largest: widest expert to consider.
        multiple: the width must divide by this.

    Returns:
        A multiple of ``multiple`` up to ``largest``.
    """
    return min(range(multiple, largest + 1, multiple), key=lambda width: abs(top_k * cost(width) - dense_cost))


def inner_width(
    width: float | str,
    channels: int,
    cost: Callable[[int], int],
    dense_cost: int,
    top_k: float,
    where: str,
    multiple: int = 1,
) -> int:
    """Turns the config key ``width`` into a number of channels.

    Args:
        width: a factor of ``channels`` in (0, 4], or ``'matched'`` for equal cost.
        channels: inner channels of the dense branch.
        cost: inner width -> cost of one expert.
        dense_cost: cost of the dense branch.
        top_k: experts that a row runs.
        where: config key of the settings, for messages.
        multiple: the result is a multiple of this, such as the groups of a GroupNorm.

    Raises:
        MoEConfigError: neither a number in range nor ``'matched'``, or K experts are too many to match.
    """
    if width == MATCHED:
        least = top_k * cost(multiple) / dense_cost
        if least > 1 + TOLERANCE:
            raise MoEConfigError(
                f"{where}.width='{MATCHED}': {top_k:g} experts of inner width {multiple} still cost {least:.2f} times "
                'the dense part that they replace, because their input and output keep their size; use a smaller '
                'top_k or a factor'
            )
        return matched_width(cost, dense_cost, top_k, channels, multiple)
    if not is_number(width) or not 0 < width <= 4:
        raise MoEConfigError(f"{where}.width={width!r}: expected a factor in (0, 4] or '{MATCHED}'")
    return max(1, round(width * channels / multiple)) * multiple
