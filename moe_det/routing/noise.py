"""Learned gate noise whose draws are reproducible, resumable and the same for one process or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed import world
from .rows import RowLayout
from .samples import pooled_rows

_STRIDE = 1_000_003  # keeps the streams of neighbouring draws apart


class LearnedNoise(nn.Module):
    """Adds N(0, 1) * softplus(W_n GAP(x) + 0.01) to the logits (arXiv 2204.10598).

    W_n starts at zero, so that the noise is the same for all experts at first (arXiv 1701.06538, appendix A). Draw
    number d comes from a generator seeded with (seed, d); both are buffers, so a resumed run continues the stream.
    The noise of a batch that is spread over processes as ``sample i -> rank i mod W`` is that of the whole batch.

    Args:
        in_channels: C.
        num_experts: E.
    """

    seed: Tensor
    draws: Tensor

    def __init__(self, in_channels: int, num_experts: int) -> None:
        super().__init__()
        self.scale = nn.Linear(in_channels, num_experts, bias=False)
        nn.init.zeros_(self.scale.weight)
        # mirrored as integers: reading a buffer on the device would be a copy to the host in every step
        self._seed = int(torch.randint(2**31, ()))
        self._draws = 0
        self._agreed = False
        self.register_buffer('seed', torch.tensor(self._seed))
        self.register_buffer('draws', torch.tensor(0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._mirror()

    def apply(self, fn: Callable[[nn.Module], None]) -> LearnedNoise:
        """Leaves the noise as it is: initialisers visit every module, and W_n starts at zero."""
        return self

    def _mirror(self) -> None:
        self._seed, self._draws = int(self.seed), int(self.draws)

    def draw(self, layout: RowLayout, like: Tensor) -> Tensor:
        """Draws (R, E) standard normal values for the rows of one call."""
        rank, num_ranks = world()
        if num_ranks > 1 and not self._agreed:
            self._mirror()  # mmengine's start of a training has given every process the buffers of rank 0
            self._agreed = True
        generator = torch.Generator().manual_seed(self._seed * _STRIDE + self._draws)
        self._draws += 1
        self.draws.fill_(self._draws)
        experts = like.shape[1]
        parts = [
            torch.randn(images * num_ranks, rows, experts, generator=generator)[rank::num_ranks]
            for images, rows in layout.blocks()
        ]
        noise = torch.cat([part.reshape(-1, experts) for part in parts])
        return noise.to(device=like.device, dtype=like.dtype, non_blocking=True)

    def deviation(self, rows: Sequence[Tensor], layout: RowLayout) -> Tensor:
        """(R, E) standard deviation of each logit's noise."""
        with torch.autocast(rows[0].device.type, enabled=False):
            pooled = pooled_rows(rows, layout)
            return F.softplus(F.linear(pooled, self.scale.weight.to(pooled.dtype)) + 0.01)
