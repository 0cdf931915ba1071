"""Linear layers of box heads with experts: rows are regions of interest."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..routing.dispatch import touch_idle
from ..routing.regions import ROI, Regions
from .dense_start import start_from_dense
from .flat_rows import FlatExperts, check_flat, mixed
from .settings import MoESettings


class MoELinear(nn.Module):
    """Experts in place of a linear layer of a box head (of Faster, Cascade and Mask R-CNN): each region runs K of E.

    A checkpoint with the layer fills every expert, plus noise; with ``weighting='straight_through'``, or with several
    experts, the model then computes at first what the one without experts does. It comes into a detector with
    :class:`~moe_det.detectors.with_experts.WithExperts`::

        model = dict(type='WithExperts', detector='FasterRCNN', experts=[
            dict(modules='roi_head.bbox_head.shared_fcs.1', type='MoELinear', num_experts=4, top_k=1)])

    Args:
        dense: the layer to replace.
        label: its path, for messages and logs.
        regions: tells where the rows of a call lie.
        **moe: keys of :class:`~moe_det.layers.settings.MoESettings`.

    Raises:
        MoEConfigError: MoE keys that cannot be built from.
    """

    def __init__(self, dense: nn.Linear, label: str, regions: Regions, **moe: Any) -> None:
        super().__init__()
        self.settings = MoESettings.from_config({'unit': ROI, **moe}, label, (ROI,))
        check_flat(self.settings, label, 'region')
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.regions = regions
        self.router = self.settings.build_router(self.in_features, label, key_channels=self.out_features)
        make_expert = self.settings.expert_maker(
            lambda: nn.Linear(self.in_features, self.out_features, dense.bias is not None),
            label,
            self.in_features,
            self.out_features,
        )
        self.expert_group = self.settings.build_experts(make_expert, group=FlatExperts)
        if self.router is not None and self.router.gate.freezes_experts:
            self.expert_group.freeze()
        self.expert_group.start_common()

    def forward(self, x: Tensor) -> Tensor:
        """(R, C) -> (R, C')."""
        if self.router is None:
            return self.expert_group([x], None, None)[0]
        if not len(x):  # no regions: nothing to decide
            output = x.new_zeros(0, self.out_features)
            return touch_idle(output, [self.expert_group, self.router.gate]) if self.training else output
        layout = self.regions.layout(len(x), x.device)
        return mixed(self.expert_group, self.router, x, x[:, :, None, None], layout)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        dense = {f'{prefix}{name}': name for name in ('weight', 'bias') if f'{prefix}{name}' in state_dict}
        experts, label = f'{prefix}expert_group.experts.', prefix.rstrip('.')
        start_from_dense(state_dict, dense, self.expert_group, experts, self.settings, label)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
