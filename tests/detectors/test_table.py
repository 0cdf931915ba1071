"""The table of docs/detectors.md: each row is built from mmdet's config at small size, trained a step, and run."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from small_models import REPOSITORY, batch_for, build, family, initialise, losses_of, predictions_of, with_experts
from torch import Tensor, nn

from moe_det.detectors.patterns import path_matches
from moe_det.layers import MoEConv2d, MoEFFN, MoELinear
from moe_det.layers.moe_layer import MoELayer
from moe_det.routing.collection import attach_collection
from moe_det.routing.intervention import Intervention, intervene
from moe_det.routing.router import find_routers

PAGE = REPOSITORY / 'docs' / 'detectors.md'
ROW = re.compile(r'\| ([^|]+) \| `(\S+\.py)` \| ([\w ]+) \| `(\S+)` \| `(\w+)` \| (\d+) \|')
MOE = {'num_experts': 3, 'top_k': 1, 'weighting': 'straight_through', 'copy_noise': 0.0}


def rows() -> dict[str, list[tuple[str, str, int]]]:
    """Config -> (modules, type, calls) of its rows."""
    found: dict[str, list[tuple[str, str, int]]] = {}
    for _, config, _, modules, kind, calls in ROW.findall(PAGE.read_text(encoding='utf-8')):
        found.setdefault(config, []).append((modules, kind, int(calls)))
    return found


ROWS = rows()


def seeded_losses(model: nn.Module) -> dict[str, Tensor]:
    """Losses with the same samples, noise and dropout whenever they are asked for."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    return {key: value for key, value in losses_of(model, batch_for(model)).items() if 'loss' in key}


def test_the_page_has_the_families_that_people_train():
    families = {config.partition('/')[0] for config in ROWS}
    assert {'retinanet', 'fcos', 'atss', 'gfl', 'tood', 'vfnet', 'rtmdet', 'yolox', 'faster_rcnn'} <= families
    assert {'detr', 'deformable_detr', 'dino', 'dab_detr', 'swin', 'mask_rcnn', 'centernet'} <= families
    assert len(ROWS) >= 25


@pytest.mark.parametrize('config', ROWS)
def test_detector(config):
    dense = initialise(build(family(config).model))
    experts = [{'modules': modules, 'type': kind, **MOE} for modules, kind, _ in ROWS[config]]
    model = initialise(build(with_experts(family(config).model, experts)))
    assert type(model) is type(dense)
    missing, unexpected = model.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected
    assert all('.router.' in key or '.moe_block.' in key for key in missing)

    if config.startswith('paa'):
        pytest.importorskip('sklearn', reason="the losses of mmdet's PAA need scikit-learn")
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, (MoELayer, MoEFFN, MoELinear))}
    for layer in layers.values():  # every row takes expert 0, the others are idle
        for parameter in layer.router.gate.parameters():
            nn.init.zeros_(parameter)
    calls = Counter()
    for path, layer in layers.items():
        layer.register_forward_hook(lambda *_, path=path: calls.update([path]))
    attach_collection(model)
    expected = seeded_losses(dense)
    losses = seeded_losses(model)
    for modules, _, number in ROWS[config]:
        served = {path: count for path, count in calls.items() if _is_named(path, modules)}
        assert served and set(served.values()) == {number}, (modules, calls)
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f'{key}: {text}')
    sum(losses.values()).backward()
    for path, layer in layers.items():
        grads = [[p.grad for p in expert.parameters()] for expert in layer.expert_group.experts]
        assert all(grad is not None for of_expert in grads for grad in of_expert), path
        assert all((grad == 0).all() for of_expert in grads[1:] for grad in of_expert), path

    with intervene(model, {path: Intervention(forced=1) for path in find_routers(model)}):
        for found in predictions_of(model, batch_for(model)):
            assert torch.isfinite(found.scores).all() and torch.isfinite(found.bboxes).all()


def _is_named(path: str, pattern: str) -> bool:
    """Whether a layer's path belongs to a row: itself, the convolution of a ConvModule, or an added block."""
    path = path.removesuffix('.moe_block.moe')
    return path_matches(path, pattern) or path_matches(path.removesuffix('.conv'), pattern)


def test_a_mask_head_takes_experts_by_its_conv_cfg():
    cfg = family('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    cfg.roi_head.mask_head.conv_cfg = {'type': 'MoEConv2d', 'num_experts': 3, 'top_k': 2}
    torch.manual_seed(0)
    model = initialise(build(cfg))
    routers = find_routers(model)
    assert sorted(routers) == [f'roi_head.mask_head.convs.{number}.conv' for number in range(4)]
    rows = []
    routers['roi_head.mask_head.convs.0.conv'].decided.observe(
        lambda routing, layout: rows.append(len(routing.indices))
    )
    losses = seeded_losses(model)
    regions = rows.copy()
    losses['loss_mask'].backward()
    for router in routers.values():
        assert router.gate.fc.weight.grad.abs().sum() > 0
    found = predictions_of(model, batch_for(model))
    assert all(result.masks.shape == (len(result.bboxes), 64, 64) for result in found)
    # a decision for each region: of the positives in training, of the detections in evaluation
    assert regions[0] > 2 and rows[1:] == [sum(len(result.bboxes) for result in found)]


# heads without norms, whose activation changes the output of a convolution in place
BY_CONV_CFG = ('retinanet', 'fsaf', 'foveabox', 'free_anchor', 'ghm', 'reppoints', 'pvt')


@pytest.mark.parametrize('config', [config for config in ROWS if config.startswith(BY_CONV_CFG)][1:])
def test_heads_take_experts_by_their_conv_cfg(config):
    cfg = family(config).model
    cfg.bbox_head.conv_cfg = {'type': 'MoEConv2d', 'num_levels': 5, **MOE}
    model = initialise(build(cfg))
    layers = [module for module in model.modules() if isinstance(module, MoEConv2d)]
    for layer in layers:
        for parameter in layer.router.gate.parameters():
            nn.init.zeros_(parameter)
    sum(seeded_losses(model).values()).backward()
    assert len(layers) >= 6
    assert all((layer.expert_group.experts[1].weight.grad == 0).all() for layer in layers)
