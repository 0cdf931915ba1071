"""A small Faster R-CNN with experts in its box head, whose gates may be told the regions that they decide about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.config import Config
from small_models import build, family, initialise, spread_weights, with_experts
from torch import Tensor, nn

from moe_det.routing.gates import GAPLinearGate

FASTER = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
LAYER = 'roi_head.bbox_head.shared_fcs.1'
FINEST = 8  # pixels: regions from twice, four times and eight times as much are pooled from levels 1, 2 and 3


def faster_config(modules: str = LAYER, **moe) -> Config:
    """Faster R-CNN of an eighth of its channels with two experts for regions, of which each image has few."""
    cfg = family(FASTER)
    experts = [{'modules': modules, 'type': 'MoELinear', 'num_experts': 2, 'top_k': 1, **moe}]
    cfg.model = with_experts(cfg.model, experts)
    cfg.model.roi_head.bbox_roi_extractor.finest_scale = FINEST
    cfg.model.test_cfg.rpn.max_per_img = 60
    cfg.model.test_cfg.rcnn.max_per_img = 20
    return cfg


def boxes_are_regions(cfg: Config) -> nn.Module:
    """The detector with random weights, but for its box regression: every detection has the box of its region."""
    torch.manual_seed(0)
    model = spread_weights(initialise(build(cfg.model))).eval()
    with torch.no_grad():
        model.rpn_head.rpn_reg.weight.mul_(0.1)  # regions of the sizes of anchors
        for parameter in model.roi_head.bbox_head.fc_reg.parameters():
            parameter.zero_()
    return model


def within_level(sides: Tensor, levels: Tensor) -> Tensor:
    """How much a side lies above the middle of its level's octave."""
    return torch.log2(sides / FINEST) - levels - 0.5


def level_alone(sides: Tensor, levels: Tensor) -> Tensor:
    """Whether the level is an upper one."""
    return levels - 0.5


@contextmanager
def gates_told(decide: Callable[[Tensor, Tensor], Tensor], monkeypatch) -> Iterator[None]:
    """Gates send a region to expert 1 where ``decide(sides, levels)`` is positive, else to expert 0."""
    pooled = SingleRoIExtractor.forward
    given = {}

    def keep(self, feats, rois, *args):
        given.update(rois=rois, levels=self.map_roi_levels(rois, len(feats)))
        return pooled(self, feats, rois, *args)

    def logits(self, x):
        rois = given['rois']
        sides = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        value = decide(sides, given['levels'])
        assert len(value) == len(x)
        return torch.stack([-value, value], dim=1)

    with monkeypatch.context() as patch:
        patch.setattr(SingleRoIExtractor, 'forward', keep)
        patch.setattr(GAPLinearGate, 'logits', logits)
        yield
