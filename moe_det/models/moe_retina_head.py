"""RetinaNet head with mixtures of experts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import cast

from mmdet.models.dense_heads import RetinaHead
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..errors import MoEConfigError
from ..layers.dense_start import start_from_dense
from ..layers.settings import check_expert_norm
from ..routing.dispatch import LevelPlan, plan_dispatch
from ..routing.distributed import world
from ..routing.experts import ExpertGroup
from ..routing.kernel_mixture import OUTPUTS
from ..routing.router import Router
from ..routing.rows import rows_of
from .box_sizes import supply_box_sizes
from .dense_names import dense_name, replaced_keys, shard_axis
from .distillation import DenseTeacher, MutualDistillation
from .head_branch import BranchShape, Decision, build_branch_experts, experts_in_branch, feature_channels
from .head_settings import BRANCHES, read_head_settings
from .head_start import start_experts, start_predictor, without_predictor_overrides

WHERE = 'bbox_head.moe'  # in messages


def _refuse_keys_of_other_heads(keys: dict) -> None:
    """Raises MoEConfigError for a key that RetinaHead does not have, for example in a config of FCOS."""
    known = {name for cls in RetinaHead.__mro__ for name in inspect.signature(cls.__init__).parameters}
    for key in keys:
        if key not in known:
            raise MoEConfigError(
                f'bbox_head.{key}: is not a key of RetinaHead, which MoERetinaHead extends. Other heads keep their '
                "type and get experts by name: model = dict(type='WithExperts', detector=..., experts=[dict(modules="
                "'bbox_head.cls_convs.*', type='MoEConv2d')])"
            )


class MoERetinaHead(RetinaHead):
    """RetinaHead whose class branch, box branch or both are mixtures of experts (arXiv 2204.10598).

    One gate decision per routing row is made on the pyramid's maps, for all levels before the first convolution; an
    attentive gate decides when the experts' towers have run. Class experts are mixed as probabilities and returned as
    logits, box experts are mixed as deltas. The outputs of shards are summed to the logits and deltas themselves, at
    the cost of the dense head and with its initial outputs. The head adds its own auxiliary losses to the losses it
    returns. A checkpoint of a plain RetinaNet fills every expert of the same shape, plus noise::

        bbox_head=dict(type='MoERetinaHead', moe=dict(
            num_experts=4, top_k=2, constraint=dict(type='KLConstraint', weight=0.25)))

    Args:
        *args: RetinaHead's.
        moe: keys of :class:`~moe_det.layers.settings.MoESettings` and

            - ``branches``: ``'cls'``, ``'reg'`` or both, default both.
            - ``placement``: what an expert replaces: the whole ``branch`` (default), its ``tower``, its ``first`` or
              ``last`` convolution, or one of the ``shards`` that its last convolution, norm and predictor are cut into
              by channels; a row then runs one copy of each shard, with weight 1.
            - ``shards`` and ``copies``: of ``placement='shards'``, number of slices G, which must divide the channels
              and the norm's groups, and of alternatives of each; default 2 and 4. ``num_experts`` and ``top_k`` follow.
              With ``shared_expert`` there is one more slice, which every row runs; G + 1 must then divide them.
            - ``class_mixture``: whether whole class branches are mixed as ``probabilities`` (default) or ``logits``.
            - ``width``: factor of an expert's inner channels, or ``'matched'`` for the experts that a row runs, shared
              ones included, at the cost of one dense branch; default 1.
            - ``shared_gate``: one gate and one decision for both branches; default False.
            - ``distillation``: ``dict(type='MutualDistillation')`` draws the experts of a row to each other,
              ``dict(type='DenseTeacher')`` to the mixture of all; see :mod:`moe_det.models.distillation`. Default none.
        init_cfg: as in RetinaHead. The predictors, dense or experts', are always drawn with standard deviation 0.01,
            class predictors with the focal prior.
        **kwargs: RetinaHead's.

    Raises:
        MoEConfigError: MoE keys that cannot be built from.
    """

    def __init__(self, *args, moe: dict, init_cfg: dict | None = None, **kwargs) -> None:
        self.settings, self.moe = read_head_settings(moe, WHERE)
        _refuse_keys_of_other_heads(kwargs)
        check_expert_norm(WHERE, kwargs.get('norm_cfg'))
        self.distillation = self.moe.distillation
        super().__init__(*args, init_cfg=without_predictor_overrides(init_cfg), **kwargs)

    # -- building ----------------------------------------------------------------------------------------------

    def _branch_shape(self, branch: str) -> BranchShape:
        per_anchor = self.cls_out_channels if branch == 'cls' else self.bbox_coder.encode_size
        return BranchShape(
            name=branch,
            in_channels=self.in_channels,
            feat_channels=self.feat_channels,
            out_channels=self.num_base_priors * per_anchor,
            stacked_convs=self.stacked_convs,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
        )

    def _init_layers(self) -> None:
        """Builds both branches; parts that stay dense have RetinaHead's names."""
        as_probabilities = self.moe.placement == 'branch' and self.moe.class_mixture == 'probabilities'
        as_probabilities = as_probabilities and self.settings.mixes == OUTPUTS
        if not self.use_sigmoid_cls and as_probabilities and 'cls' in self.moe.branches:
            raise MoEConfigError(
                "bbox_head.moe.placement='branch' mixes class experts as sigmoid probabilities; "
                "loss_cls must have use_sigmoid=True, or class_mixture='logits'"
            )
        self.relu = nn.ReLU(inplace=True)
        # torch's ModuleDict does not say what it holds
        self.routers = cast('dict[str, Router]', nn.ModuleDict())
        self.branch_experts = cast('dict[str, ExpertGroup]', nn.ModuleDict())
        for branch in BRANCHES:
            self._init_branch(self._branch_shape(branch))
        self._init_routers()

    def _init_branch(self, shape: BranchShape) -> None:
        convs = shape.tower(shape.feat_channels, shape.feat_channels)
        predictor: nn.Conv2d | None = shape.predictor(shape.feat_channels if shape.stacked_convs else shape.in_channels)
        if shape.name in self.moe.branches:
            placement = self.moe.placement
            self.branch_experts[shape.name] = build_branch_experts(shape, self.settings, self.moe, WHERE)
            if placement in ('branch', 'shards'):
                predictor = None
            if placement in ('branch', 'tower'):
                convs = nn.ModuleList()
            else:  # a placeholder keeps the numbers of the dense convolutions as in a plain head
                convs[0 if placement == 'first' else -1] = nn.Identity()
        setattr(self, f'{shape.name}_convs', convs)
        if predictor is not None:
            setattr(self, f'retina_{shape.name}', predictor)

    def _init_routers(self) -> None:
        names = ['both'] if self.moe.shared_gate else list(self.moe.branches)
        for name in names:
            router = self.settings.build_router(
                self.in_channels,
                WHERE,
                self.prior_generator.num_levels,
                f'bbox_head.{name}',
                feature_channels(self.branch_experts[self.moe.branches[0] if name == 'both' else name]),
                self.moe.shards if self.moe.placement == 'shards' else None,
            )
            if router is None:
                continue
            sees_experts = router.needs_keys or router.gate.freezes_experts
            if sees_experts and name == 'both':
                raise MoEConfigError(
                    f'bbox_head.moe.shared_gate=True: {type(router.gate).__name__} sees the features of one '
                    "branch's experts; use shared_gate=False"
                )
            if sees_experts and self.distillation is not None:
                raise MoEConfigError(
                    f'{WHERE}.distillation: {type(router.gate).__name__} runs or freezes the experts itself; use '
                    'another gate'
                )
            if router.gate.freezes_experts:
                self.branch_experts[name].freeze()
            self.routers[name] = router

    def init_weights(self) -> None:
        """RetinaHead's initialisation; every class predictor gets the focal prior, a shared expert starts at zero."""
        again = self.is_init
        super().init_weights()
        if again or 'Pretrained' in str(self.init_cfg):
            return
        for branch in BRANCHES:
            if hasattr(self, f'retina_{branch}'):
                start_predictor(getattr(self, f'retina_{branch}'), branch)
        for branch, group in self.branch_experts.items():
            start_experts(group, branch)

    # -- forward -----------------------------------------------------------------------------------------------

    @property
    def experts_on_features(self) -> list[ExpertGroup]:
        """The groups of experts; what they are given depends on the pyramid alone, whatever any router decides."""
        return list(self.branch_experts.values())

    @property
    def _distilling(self) -> MutualDistillation | DenseTeacher | None:
        """Works while experts keep their features: not in evaluation, even if the head is asked for its loss."""
        return self.distillation if all(group.training for group in self.experts_on_features) else None

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """Predicts from the pyramid.

        Args:
            x: L tensors (N, C, H_l, W_l).

        Returns:
            Class logits, L tensors (N, num_anchors * num_classes, H_l, W_l), and box deltas, L tensors
            (N, num_anchors * 4, H_l, W_l).
        """
        if (distillation := self._distilling) is not None:
            distillation.note_pyramid(x)
        decisions = self._decide(x)
        outputs = []
        for branch in BRANCHES:
            name = 'both' if self.moe.shared_gate else branch
            outputs.append(self._forward_branch(branch, list(x), decisions.get(name, Decision())))
        return outputs[0], outputs[1]

    def _decide(self, x: tuple[Tensor, ...]) -> dict[str, Decision]:
        """Each router's decision; gates that need the experts' features decide later, when these have run."""
        if not self.routers:
            return {}
        grid = self.settings.grid or 1
        rows, layout = rows_of(x, self.settings.unit, grid)
        if any(router.needs_keys for router in self.routers.values()):
            return {
                name: Decision(layout, grid, router=router, gate_rows=rows) for name, router in self.routers.items()
            }
        routings = {name: router(rows, layout) for name, router in self.routers.items()}
        plans: Sequence[Sequence[LevelPlan] | None] = [None] * len(routings)
        if self.settings.sorts:
            plans = plan_dispatch(list(routings.values()), layout.level_rows)
        return {
            name: Decision(layout, grid, routing, plan)
            for (name, routing), plan in zip(routings.items(), plans, strict=True)
        }

    def _forward_branch(self, branch: str, maps: list[Tensor], decision: Decision) -> list[Tensor]:
        experts = self.branch_experts[branch] if branch in self.branch_experts else None
        convs = getattr(self, f'{branch}_convs')
        experts_first = self.moe.placement not in ('last', 'shards')
        if experts is not None and experts_first:
            maps = experts_in_branch(maps, experts, decision)
        for conv in convs:
            maps = [conv(x) for x in maps]
        if experts is not None and not experts_first:
            maps = experts_in_branch(maps, experts, decision)
        predictor = getattr(self, f'retina_{branch}', None)
        return maps if predictor is None else [predictor(x) for x in maps]

    # -- losses ------------------------------------------------------------------------------------------------

    def get_targets(self, anchor_list: list[list[Tensor]], *args, **kwargs) -> tuple:
        """RetinaHead's targets, with the number of positive anchors averaged over the processes.

        RetinaHead divides by the positives of its own process: the images of a process that has few would count more
        than they do in one process with the whole batch.
        """
        targets = list(super().get_targets(anchor_list, *args, **kwargs))
        if (distillation := self._distilling) is not None:
            distillation.note_targets(targets[0], targets[1])
        if world()[1] > 1:
            # not read back to the host: the losses divide by a tensor as well
            targets[4] = reduce_mean(anchor_list[0][0].new_full((), float(targets[4])))
        return tuple(targets)

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: list[InstanceData],
        *args,
        **kwargs,
    ) -> dict:
        """RetinaHead's losses and, per router and soft constraint, ``loss_moe_<constraint>_<branch>``."""
        losses = super().loss_by_feat(cls_scores, bbox_preds, batch_gt_instances, *args, **kwargs)
        asking = [router for router in self.routers.values() if 'box_sizes' in router.constraints.asked]
        if asking:
            grid, strides = self.settings.grid or 1, self.prior_generator.strides
            supply_box_sizes(asking, batch_gt_instances, cls_scores, grid, strides)
        for name, router in self.routers.items():
            for key, loss in router.collect().items():
                losses[f'loss_moe_{key}_{name}'] = loss
        if (distillation := self._distilling) is not None:
            losses.update(distillation.losses_of(self, (cls_scores, bbox_preds)))
        return losses

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        for branch, group in self.branch_experts.items():
            dense = replaced_keys(state_dict, prefix, branch, self.moe.placement, self.stacked_convs)
            experts, label = f'{prefix}branch_experts.{branch}.experts.', f'{prefix}{branch}'
            start_from_dense(state_dict, dense, group, experts, self.settings, label, shard_axis)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def dense_name(self, branch: str, name: str) -> str:
        """Name of an expert's tensor -> the name that a plain head gives the tensor in its place."""
        return dense_name(branch, name, self.moe.placement, self.stacked_convs)
