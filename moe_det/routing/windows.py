"""Rows that are windows of a map of tokens, as transformers cut it whose attention stays inside windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import RowLayout

WINDOW = 'window'


class Windows:
    """Cuts the tokens of a map into windows and puts them together again.

    Whoever knows the size of the map, which tokens in a list do not tell, sets it before each call.

    Args:
        size: tokens per side of a window.

    Attributes:
        map_size: (H, W) of the next call's map.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.map_size = (0, 0)

    @property
    def grid(self) -> tuple[int, int]:
        """Windows in a column and in a row of the map; the last ones may reach over its border."""
        height, width = self.map_size
        return -(-height // self.size), -(-width // self.size)

    def layout(self, images: int) -> RowLayout:
        """Where the windows of N images lie, row by row."""
        rows, columns = self.grid
        return RowLayout(WINDOW, images, (rows * columns,), map_sizes=(self.grid,))

    def cut(self, tokens: Tensor) -> Tensor:
        """(N, H W, C) -> (N P, S S, C) of P windows with S S tokens; zeros stand for tokens behind the border.

        Raises:
            ValueError: the map has another number of tokens.
        """
        height, width = self.map_size
        if tokens.shape[1] != height * width:
            raise ValueError(f'expected the tokens of a map of {height} x {width}, got {tokens.shape[1]}')
        rows, columns = self.grid
        behind = (0, 0, 0, columns * self.size - width, 0, rows * self.size - height)
        maps = F.pad(tokens.unflatten(1, self.map_size), behind)
        return (
            maps.unflatten(2, (columns, self.size))
            .unflatten(1, (rows, self.size))
            .transpose(2, 3)
            .flatten(3, 4)
            .flatten(0, 2)
        )

    def join(self, windows: Tensor) -> Tensor:
        """The inverse of :meth:`cut`, for any number of channels."""
        (height, width), (rows, columns) = self.map_size, self.grid
        maps = windows.unflatten(0, (-1, rows, columns)).unflatten(3, (self.size, self.size)).transpose(2, 3)
        return maps.flatten(3, 4).flatten(1, 2)[:, :height, :width].flatten(1, 2)

    def means(self, windows: Tensor) -> Tensor:
        """(N P, S S, C) -> (N P, C) mean over a window's tokens, those behind the border left out."""
        inside = [
            torch.arange(count * self.size, device=windows.device).lt(length).unflatten(0, (count, self.size)).sum(1)
            for count, length in zip(self.grid, self.map_size, strict=True)
        ]
        counts = (inside[0][:, None] * inside[1]).flatten()
        total = windows.sum(1).unflatten(0, (-1, len(counts)))
        return (total / counts[:, None]).flatten(0, 1)
