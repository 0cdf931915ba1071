"""One branch of a RetinaNet head (class or box), dense or with experts.

A branch is a tower of convolutions and a predictor. Experts can take the place of the whole branch, the tower, its
first or its last convolution, or of slices of its last convolution and predictor; dense parts keep the names of mmdet's
RetinaHead, so that its checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import MoEConfigError
from ..layers.settings import MoESettings
from ..layers.width import inner_width
from ..routing.dispatch import LevelPlan
from ..routing.experts import ExpertGroup
from ..routing.mixtures import mix_linear, mix_probabilities
from ..routing.router import Router
from ..routing.routing import Routing
from ..routing.rows import HALO, RowLayout, join_patches, split_patches
from .branch_shape import BranchShape
from .distillation import MutualDistillation
from .expert_features import FeatureGroup
from .head_settings import HeadSettings
from .shards import ShardExpert, ShardGroup, build_shards


class TowerExpert(nn.Module):
    """An expert that is a tower of convolutions, with a predictor when it replaces the whole branch.

    Args:
        shape: the branch.
        inner: channels inside the expert.
        with_predictor: whether the expert predicts; else it returns ``feat_channels`` channels.
    """

    def __init__(self, shape: BranchShape, inner: int, with_predictor: bool) -> None:
        super().__init__()
        self.convs = shape.tower(inner, inner if with_predictor else shape.feat_channels)
        last = inner if shape.stacked_convs else shape.in_channels
        self.predictor = shape.predictor(last) if with_predictor else None
        self.feature_channels = last if with_predictor else shape.feat_channels

    gives_features = True

    def forward(self, x: Tensor, with_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(R, C, H, W) -> (R, C', H, W); on demand with the tower's features, which an attentive gate decides from."""
        for conv in self.convs:
            x = conv(x)
        output = x if self.predictor is None else self.predictor(x)
        return (output, x) if with_features else output


def build_branch_experts(shape: BranchShape, settings: MoESettings, own: HeadSettings, where: str) -> ExpertGroup:
    """Builds the experts of a branch.

    Args:
        shape: the branch.
        settings: the checked MoE keys.
        own: the checked keys of the head.
        where: config key of the settings, for messages.

    Raises:
        MoEConfigError: a tower, first or last convolution that does not exist, a width without meaning, or a last
            convolution that cannot be cut.
    """
    placement, width = own.placement, own.width
    if placement == 'shards':
        return build_shards(shape, settings, own.shards, where)
    if placement != 'branch' and shape.stacked_convs == 0:
        raise MoEConfigError(f'{where}.placement={placement!r}: stacked_convs=0 leaves no convolution to replace')
    if placement in ('first', 'last'):
        if width != 1:
            raise MoEConfigError(f"{where}.width={width!r}: applies to the placements 'branch' and 'tower' alone")
        in_channels = shape.in_channels if placement == 'first' else shape.last_inputs
        make_expert = settings.expert_maker(
            lambda: shape.conv(in_channels, shape.feat_channels), where, in_channels, shape.feat_channels
        )
        return settings.build_experts(make_expert)
    whole = placement == 'branch'
    inner = inner_width(
        width,
        shape.feat_channels,
        lambda channels: shape.cost(channels, whole),
        shape.cost(shape.feat_channels, whole),
        settings.experts_run,
        where,
        multiple=(shape.norm_cfg or {}).get('num_groups', 1),
    )
    as_probabilities = whole and shape.name == 'cls' and own.class_mixture == 'probabilities'
    mixture = mix_probabilities if as_probabilities else mix_linear
    make_expert = settings.expert_maker(
        lambda: TowerExpert(shape, inner, whole),
        where,
        shape.in_channels,
        shape.out_channels if whole else shape.feat_channels,
    )
    group = FeatureGroup if isinstance(own.distillation, MutualDistillation) else ExpertGroup
    return settings.build_experts(make_expert, mixture, group=group)


def feature_channels(experts: ExpertGroup) -> int:
    """Channels of the features by which an attentive gate knows the experts of a branch."""
    expert: Any = experts.experts[0]
    return expert.feature_channels if isinstance(expert, (TowerExpert, ShardExpert)) else expert.out_channels


@dataclass(frozen=True)
class Decision:
    """How the rows of one forward reach the experts of a branch.

    Attributes:
        layout: where the rows lie; None with a single expert.
        grid: cells per axis for ``unit='patch'``.
        routing: the decision; None with a single expert, or when it is made from what the experts compute.
        plan: per level, for sorted dispatch.
        router: makes the decision from ``gate_rows`` and what the experts computed.
        gate_rows: L tensors of rows, as cut from the pyramid's maps.
    """

    layout: RowLayout | None = None
    grid: int = 1
    routing: Routing | None = None
    plan: Sequence[LevelPlan] | None = None
    router: Router | None = None
    gate_rows: Sequence[Tensor] = ()


def experts_in_branch(maps: Sequence[Tensor], experts: ExpertGroup, decision: Decision) -> list[Tensor]:
    """Runs a branch's experts on the maps of all levels.

    Args:
        maps: L tensors (N, C, H_l, W_l).
        experts: the branch's experts.
        decision: which of them each row runs.

    Returns:
        L tensors (N, C', H_l, W_l).
    """
    layout, grid = decision.layout, decision.grid
    patches = layout is not None and layout.unit == 'patch'
    halo = experts.halo if isinstance(experts, ShardGroup) else HALO
    rows = [split_patches(x, grid, halo) for x in maps] if patches else maps
    if decision.router is not None:
        assert layout is not None  # several experts
        outputs = experts.run_and_route(rows, decision.router, decision.gate_rows, layout)
    else:
        outputs = experts(rows, decision.routing, layout, decision.plan)
    if not patches:
        return outputs
    return [join_patches(y, x.shape[2], x.shape[3], grid, halo) for y, x in zip(outputs, maps, strict=True)]
