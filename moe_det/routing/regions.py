"""Rows that are regions of interest, of which every image has another number."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .rows import RowLayout

ROI = 'roi'


@dataclass(frozen=True)
class RegionLayout(RowLayout):
    """Where the regions of one call lie: in an image, and on the level of the pyramid that they are pooled from.

    Attributes:
        region_images: (R,) position of each region's image in the batch, ascending.
        region_levels: (R,) level of each region.
    """

    region_images: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long), compare=False)
    region_levels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long), compare=False)

    def levels(self) -> Tensor:
        """(R,) level that each region is pooled from."""
        return self.region_levels.cpu()

    def images(self) -> Tensor:
        """(R,) position of each region's image in the batch."""
        return self.region_images.cpu()

    def numbers(self) -> Tensor:
        """(R,) position of each region among those of its image, whatever their levels."""
        images = self.images()
        return torch.arange(len(images)) - torch.searchsorted(images, images)

    def blocks(self) -> list[tuple[int, int]]:
        """All regions together, for images have unequal numbers of them."""
        return [(1, len(self.region_images))]

    @property
    def level_rows(self) -> tuple[int, ...]:
        """All regions together: their levels do not follow each other."""
        return (len(self.region_images),)


class Regions:
    """The regions that a box head is given next: whoever pools them tells its layers here.

    Layers in the head see one row of features per region and nothing of images or levels.
    """

    def __init__(self) -> None:
        self._images = self._levels = torch.zeros(0, dtype=torch.long)
        self._num_images = 1

    def note(self, images: Tensor, levels: Tensor, num_images: int) -> None:
        """Takes the regions of the next call: (R,) images, ascending, (R,) levels, and the number of images."""
        self._images, self._levels, self._num_images = images, levels, num_images

    def layout(self, rows: int, device: torch.device) -> RegionLayout:
        """Where the rows of a call lie; all in one image on one level where nothing else is known of so many."""
        images, levels, count = self._images, self._levels, self._num_images
        if len(images) != rows:  # a head that is run alone, without what pools its regions
            images, count = torch.zeros(rows, dtype=torch.long, device=device), 1
            levels = images
        return RegionLayout(ROI, count, (1,), map_sizes=((rows, 1),), region_images=images, region_levels=levels)
