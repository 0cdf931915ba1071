"""Experts that are slices of a branch's last convolution and predictor.

The channels of the last convolution, its norm and activation, and with them the input channels of the predictor, are
cut into G *shards*; each has R *copies*. A routing row runs one copy of every shard, whose outputs add up to what the
uncut branch would give: it costs as much as the dense branch, whatever R is. Expert number e is copy e % R of shard e
// R. A shared expert is one slice more, which every row runs (shared experts of DeepSeekMoE, arXiv 2401.06066).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import MoEConfigError
from ..layers.settings import MoESettings
from ..routing.dispatch import LevelPlan, Rearranged
from ..routing.experts import ExpertGroup
from ..routing.routing import Routing
from ..routing.rows import RowLayout
from .merged_shards import MergedShards, merges

if TYPE_CHECKING:
    from .branch_shape import BranchShape

Combination = tuple[int, ...]  # the experts of a row, one of each shard


class ShardExpert(nn.Module):
    """A copy of a shard: a slice of the last convolution's channels and what the predictor makes of them.

    Args:
        shape: the branch.
        slices: number of slices that the branch is cut into.
    """

    gives_features = True

    def __init__(self, shape: BranchShape, slices: int) -> None:
        super().__init__()
        self.feature_channels = shape.feat_channels // slices
        norm_cfg = shape.norm_cfg
        if norm_cfg is not None and 'num_groups' in norm_cfg:
            norm_cfg = {**norm_cfg, 'num_groups': norm_cfg['num_groups'] // slices}
        self.conv = dataclasses.replace(shape, norm_cfg=norm_cfg).conv(shape.last_inputs, self.feature_channels)
        self.predictor = shape.predictor(self.feature_channels)

    def forward(self, x: Tensor, with_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(R, C, H, W) -> (R, C', H, W); on demand with the slice's features, which an attentive gate decides from."""
        features = self.conv(x)
        output = self.predictor(features)
        return (output, features) if with_features else output


def build_shards(shape: BranchShape, settings: MoESettings, shards: int, where: str) -> ExpertGroup:
    """Builds the shards of a branch, E / G copies of each, and the shared slice where the settings have one.

    Args:
        shape: the branch.
        settings: the checked MoE keys.
        shards: G.
        where: config key of the settings, for messages.

    Raises:
        MoEConfigError: a last convolution that cannot be cut into so many slices.
    """
    slices = shards + settings.shared_expert
    _check_cut(shape, slices, f'{where}.shards={shards}' + (' and a shared expert' if settings.shared_expert else ''))
    return settings.build_experts(lambda: ShardExpert(shape, slices), slots=shards, group=ShardGroup)


def _check_cut(shape: BranchShape, slices: int, given: str) -> None:
    where = given.partition('.shards')[0]
    cut = f'{given}: {slices} slices do' if 'shared' in given else f'{given}: does'
    if shape.stacked_convs == 0:
        raise MoEConfigError(f"{where}.placement='shards': stacked_convs=0 leaves no convolution to cut")
    if shape.feat_channels % slices:
        raise MoEConfigError(f'{cut} not divide feat_channels={shape.feat_channels}')
    whole: ConvModule = shape.conv(shape.last_inputs, shape.feat_channels)
    if type(whole.conv) is not nn.Conv2d:
        raise MoEConfigError(
            f"{where}.placement='shards': cuts plain convolutions alone; conv_cfg={shape.conv_cfg!r} must be None or "
            "dict(type='Conv2d')"
        )
    if isinstance(whole.norm, nn.GroupNorm):
        if whole.norm.num_groups % slices:
            raise MoEConfigError(f'{cut} not divide the num_groups={whole.norm.num_groups} of norm_cfg')
    elif whole.norm is not None and not isinstance(whole.norm, (_BatchNorm, _InstanceNorm)):
        raise MoEConfigError(
            f"{where}.placement='shards': norm_cfg={shape.norm_cfg!r} cannot be cut by channels; 'GN', 'BN', 'IN' and "
            'no norm can'
        )


class ShardGroup(ExpertGroup):
    """The copies of all shards of a branch.

    Rows of a level that chose the same copies run them as one block, see
    :class:`~moe_det.models.merged_shards.MergedShards`. Where that would not be the same (batch statistics, rows that
    an intervention gives several copies of a shard), experts run one by one as in any group.
    """

    cut = True
    halo = 2  # pixels of its neighbours that a patch needs: one for each of the two convolutions

    def forward(
        self,
        rows: Sequence[Tensor],
        routing: Routing | None,
        layout: RowLayout | None,
        plan: Sequence[LevelPlan] | None = None,
    ) -> list[Tensor]:
        """As ExpertGroup does; without a routing every expert runs, the only copy of its shard."""
        if routing is not None or not self._merges:
            return super().forward(rows, routing, layout, plan)
        (block,) = self._merged([tuple(range(len(self)))]).values()
        return self.with_shared([block(x) for x in rows], rows)

    @property
    def _merges(self) -> bool:
        expert: Any = self.experts[0]
        return merges(expert.conv.norm)

    def _merged(self, combinations: Iterable[Combination]) -> dict[Combination, MergedShards]:
        weights = {expert: self.weights_of(expert) for expert in {e for key in combinations for e in key}}
        return {
            key: MergedShards([self.experts[expert] for expert in key], [weights[expert] for expert in key])
            for key in combinations
        }

    def run_sorted(
        self, rows: Sequence[Tensor], routing: Routing, layout: RowLayout, plan: Sequence[LevelPlan]
    ) -> list[Tensor]:
        if not (self._merges and self._one_copy_each(routing, plan)):
            return super().run_sorted(rows, routing, layout, plan)
        by_level = by_combination(plan, tuple(range(0, len(self), self.copies)), rows[0].device)
        if layout.unit == 'image':
            plan, by_level = [plan[0]] * len(rows), by_level * len(rows)
        merged = self._merged({key for level in by_level for key in level.counts})
        outputs = []
        for x, level, chosen in zip(rows, plan, by_level, strict=True):
            weights = routing.log_weights.narrow(0, level.first_row, level.num_rows)
            outputs.append(_run_combinations(x, weights, chosen, merged))
        return self._with_idle(outputs, plan)

    def _one_copy_each(self, routing: Routing, plan: Sequence[LevelPlan]) -> bool:
        if routing.indices.shape[1] != self.slots:
            return False
        slots = np.arange(self.slots)
        return all(level.choices is not None and bool((level.choices // self.copies == slots).all()) for level in plan)


@dataclass(frozen=True)
class RowsByCombination:
    """The rows of one level by what they chose.

    Attributes:
        counts: combination of copies -> rows that chose it, in the order in which they follow each other.
        order: (R_l,) row of each sorted one; None where nothing is rearranged.
        places: (R_l,) sorted position of each row; None as for ``order``.
    """

    counts: dict[Combination, int]
    order: Tensor | None = None
    places: Tensor | None = None


def by_combination(
    plan: Sequence[LevelPlan], default: Combination, device: torch.device | str = 'cpu'
) -> list[RowsByCombination]:
    """Sorts the rows of each level by combination, on the host; indices go to the device in one piece.

    Args:
        plan: of each level.
        default: for a level without rows.
        device: of the rows.
    """
    found, orders = [], []
    for level in plan:
        assert level.choices is not None  # which plan_dispatch keeps
        keys = [tuple(row) for row in level.choices.tolist()]
        together = [key for key, _ in itertools.groupby(keys)]
        counts = {key: keys.count(key) for key in together}
        order = None
        if len(counts) < len(together):
            order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
            counts = {key: counts[key] for key in sorted(counts)}
            orders.append(np.stack([order, np.argsort(order)]))
        found.append((counts or {default: 0}, order is not None))
    if not orders:
        return [RowsByCombination(counts) for counts, _ in found]
    numbers = torch.from_numpy(np.concatenate(orders, axis=1)).to(device, non_blocking=True)
    parts = iter(numbers.split([order.shape[1] for order in orders], dim=1))
    return [RowsByCombination(counts, *(next(parts) if moved else ())) for counts, moved in found]


def _run_combinations(
    rows: Tensor, log_weights: Tensor, chosen: RowsByCombination, merged: dict[Combination, MergedShards]
) -> Tensor:
    """One level: (R_l, C, H, W) -> (R_l, C', H, W)."""
    if len(chosen.counts) == 1:
        (key,) = chosen.counts
        return merged[key](rows, log_weights if len(rows) else None)
    if chosen.order is not None:
        rows = Rearranged.apply(rows, chosen.order, chosen.places, 1)
        log_weights = log_weights[chosen.order]
    counts = list(chosen.counts.values())
    parts = zip(chosen.counts, rows.split(counts), log_weights.split(counts), strict=True)
    outputs = torch.cat([merged[key](part, weights) for key, part, weights in parts])
    return outputs if chosen.order is None else Rearranged.apply(outputs, chosen.places, chosen.order, 1)
