"""Several experts that every row runs."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn


class SharedExperts(nn.ModuleList):
    """The sum of several shared experts (DeepSeekMoE, arXiv 2401.06066)."""

    def forward(self, *arguments: Any) -> Tensor:
        """As each of them."""
        return functools.reduce(torch.add, [expert(*arguments) for expert in self])
