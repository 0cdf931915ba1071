"""What a constraint may need to know about each routing row besides its decision.

A constraint names it in :attr:`~moe_det.routing.constraint.Constraint.samples`; a router whose constraints ask for
nothing computes and keeps nothing. Shape letters: R rows, N images, D values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .gates import global_average
from .rows import RowLayout

# computed by the router; any other kind is supplied by the owner of the step, per image or per row
FEATURES = 'features'  # pooled maps
TEACHER = 'teacher'  # logits of the gate that a distilled one learns from


def pooled_rows(rows: Sequence[Tensor], layout: RowLayout) -> Tensor:
    """(R, C) spatial mean of each routing row; for ``unit='image'`` the mean of the levels' means.

    Args:
        rows: per level (R_l, C, h_l, w_l).
        layout: where the rows lie.
    """
    pooled = [global_average(x) for x in rows]
    return torch.stack(pooled).mean(0) if layout.unit == 'image' else torch.cat(pooled)


@dataclass
class RowSamples:
    """Detached properties of the rows of a step.

    Attributes:
        images: (R,) position of each row's image in the batch.
        num_images: N.
        features: (R, C) pooled features, when requested.
        teacher: (R, E) logits of the attentive gate, when requested.
        supplied: kind -> values that the owner of the step supplied, and whether they are (R, ...), one for each row,
            or (N, ...), one for each image.
    """

    images: Tensor
    num_images: int
    features: Tensor | None = None
    teacher: Tensor | None = None
    supplied: Mapping[str, tuple[Tensor, bool]] = field(default_factory=dict)

    @staticmethod
    def take(asked: Collection[str], rows: Sequence[Tensor], layout: RowLayout) -> RowSamples | None:
        """Takes from one call's rows what constraints ask for; None when they ask for nothing."""
        if not asked:
            return None
        features = pooled_rows([x.detach() for x in rows], layout) if FEATURES in asked else None
        images = layout.images().to(rows[0].device, non_blocking=True)
        return RowSamples(images, layout.num_images, features)

    @staticmethod
    def concatenate(parts: Sequence[RowSamples | None]) -> RowSamples | None:
        """Joins the samples of the calls of one step, whose images are the same."""
        kept = [part for part in parts if part is not None]
        if len(kept) < len(parts):
            return None
        return RowSamples(
            images=torch.cat([part.images for part in kept]),
            num_images=max(part.num_images for part in kept),
            features=_joined([part.features for part in kept]),
            teacher=_joined([part.teacher for part in kept]),
        )

    def points(self, kind: str) -> tuple[Tensor, Tensor]:
        """The values by which rows are told apart.

        Args:
            kind: ``'features'`` or a kind that was supplied.

        Returns:
            Points (P, D) and, for each row, the number (R,) of its point.

        Raises:
            ValueError: nothing was supplied, or for another number of images or rows.
        """
        if kind == FEATURES and self.features is not None:
            return self.features, torch.arange(len(self.features), device=self.features.device)
        if kind not in self.supplied:
            raise ValueError(
                f"no {kind!r} of this step's images were supplied: call Router.supply({kind!r}, (images, values) "
                'tensor) in every step before its losses are collected'
            )
        values, per_row = self.supplied[kind]
        if per_row and len(values) != len(self.images):
            raise ValueError(f'{kind!r} were supplied for {len(values)} rows, the step has {len(self.images)}')
        if not per_row and len(values) != self.num_images:
            raise ValueError(f'{kind!r} were supplied for {len(values)} images, the rows come from {self.num_images}')
        index = torch.arange(len(values), device=values.device) if per_row else self.images
        return values.detach().flatten(1), index


def _joined(values: Sequence[Tensor | None]) -> Tensor | None:
    """One tensor of all calls' rows; None where a kind was not asked for."""
    kept = [value for value in values if value is not None]
    return torch.cat(kept) if kept else None
